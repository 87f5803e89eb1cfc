"""Push a model into a store: safe to repeat, to kill, and to do twice at once.

A version is reserved by a claim for one content before its first file is stored, so that two
pushes never mix their files in it, and whoever pushes the same again goes on with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchpredict import __version__
from batchpredict.errors import ConfigInvalid, TryAgain, UsageError
from batchpredict.model.registry import versions
from batchpredict.model.registry.aliases import now, user
from batchpredict.model.registry.collecting import Collected
from batchpredict.model.registry.reference import (
    LATEST,
    check_alias,
    check_model,
    check_version,
    is_name,
    is_number,
)
from batchpredict.model.registry.store import Store, claim_key, version_key
from batchpredict.model.registry.versions import (
    MANIFEST,
    StoredFile,
    VersionManifest,
    canonical,
    check_keys,
    content_sha256,
    json_object,
    made,
)
from batchpredict.s3 import Missing, Refused

# Where the same content is looked for: who repeats a push does so before long.
_NEWEST = 10
_MOST_CLAIM = 1 << 16
_CLAIM = {"content": str, "when": str, "by": str, "removed": str | None}

Watch = Callable[[int], None]


@dataclass(frozen=True)
class PushOptions:
    """`version`: None takes the next number. `aliases`: to move, besides `latest` where `latest`
    is true. `why`: goes into their histories.
    """

    version: str | None = None
    aliases: tuple[str, ...] = ()
    latest: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    why: str = ""

    def moves(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(([LATEST] if self.latest else []) + list(self.aliases)))


@dataclass(frozen=True)
class Pushed:
    """`existed`: the same was there already, complete. `stored_bytes`: what was uploaded now."""

    manifest: VersionManifest
    existed: bool
    stored_bytes: int
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """`removed`: when the version was removed; None of one that may be used."""

    content: str
    when: str
    by: str
    removed: str | None = None

    def encode(self) -> bytes:
        return canonical(vars(self))


def push(
    store: Store, model: Collected, name: str, options: PushOptions, watch: Watch = lambda _: None
) -> Pushed:
    """Store `model` as a version of `name` and move aliases to it; `watch` is told of bytes.

    The same files and metadata as one of the newest versions are that version. Raises UsageError
    (names, a version that is taken), TryAgain (a file changed, others push too much) and what
    Store raises.
    """
    check_model(name)
    store.objects.prepare()
    _check(store, name, options)
    content = content_sha256(model.files, options.metadata)
    version = _claimed(store, name, content, options.version)
    stored = 0
    try:
        manifest = store.manifest(name, version)
        existed = True
    except Missing:
        existed = False
        stored = _upload(store, model, version_key(name, version), watch)
        manifest = _finish(store, model, name, version, options)
        if read_claim(store, name, version)[0].removed:
            # Another push of the same had completed it, and it was removed while we went on.
            store.objects.remove(version_key(name, version, MANIFEST))
            raise TryAgain(
                f"{name}@{version}: was removed while it was pushed; push again"
            ) from None
    for alias in options.moves():
        store.promote(name, version, alias, options.why, action="push")
    return Pushed(manifest, existed, stored, options.moves())


def _check(store: Store, name: str, options: PushOptions) -> None:
    """Whatever can be wrong, before anything is stored. Raises UsageError."""
    for alias in options.moves():
        check_alias(alias)
        store.alias(name, alias)  # raises where it is damaged, and no alias is to be moved alone
        if alias == options.version or store.is_claimed(name, alias):
            raise UsageError(f"{alias!r}: is a version of {name}, no alias can have this name")
    if options.version is not None:
        check_version(options.version)
        if not is_number(options.version) and (
            options.version == LATEST or store.alias(name, options.version)
        ):
            raise UsageError(f"{options.version!r}: is an alias of {name}; choose another version")


def _claimed(store: Store, name: str, content: str, wanted: str | None) -> str:
    """A version that is reserved for `content`, by us or by an earlier push of the same."""
    if wanted is not None:
        claim = _claim(store, name, wanted, content)
        if claim.content != content or claim.removed:
            what = "was removed" if claim.removed else "has other files or metadata"
            raise UsageError(f"{name}@{wanted}: is taken and {what}; choose another version")
        return wanted
    # One look, claims last: a version is claimed before it has files, so that what others push
    # meanwhile is either known with its claim or has a higher number than all that is known.
    by_hand = store.versions(name)
    claimed = _claims(store, name)
    for version in claimed[:_NEWEST]:
        claim, _ = read_claim(store, name, version)
        if claim.content == content and not claim.removed:
            return version
    number = max([0, *(int(v) for v in (*by_hand, *claimed) if is_number(v))])
    while True:
        number += 1
        claim = _claim(store, name, str(number), content)
        if claim.content == content and not claim.removed:
            return str(number)


def _claim(store: Store, name: str, version: str, content: str) -> Claim:
    """The claim of a version, which is made where there is none."""
    mine = Claim(content, now(), user())
    # In this order: whoever pushes at the same time claims before the first file.
    has_files = next(store.objects.list(version_key(name, version)), None) is not None
    if not store.is_claimed(name, version):
        if has_files:  # copied here by hand, of what content cannot be known
            return Claim("", mine.when, mine.by)
        with contextlib.suppress(Refused):  # another push was faster; its claim is what counts
            store.objects.create(claim_key(name, version), mine.encode())
            return mine
    return read_claim(store, name, version)[0]


def read_claim(store: Store, name: str, version: str) -> tuple[Claim, str]:
    """A claim and its etag. Raises Missing, ConfigInvalid."""
    key = claim_key(name, version)
    content, etag = store.objects.read(key, _MOST_CLAIM)
    document: dict[str, Any] = json_object(content, f"{store}: {key}")
    check_keys(document, _CLAIM, f"{store}: {key}")
    return Claim(**document), etag


def _claims(store: Store, name: str) -> list[str]:
    """Versions that are reserved, the last first."""
    claims = [
        (entry.modified_ns, entry.key.rpartition("/")[2].removesuffix(".json"))
        for entry in store.objects.list(f"{name}/claims/")
    ]
    return [version for _, version in sorted(claims, reverse=True) if is_name(version)]


def _upload(store: Store, model: Collected, prefix: str, watch: Watch) -> int:
    """Store the files that are not there yet; bytes that were stored."""
    there = {entry.key.removeprefix(prefix): entry for entry in store.objects.list(prefix)}
    stored = 0
    for file in model.files:
        found = there.get(file.path)
        # An earlier push of the same has stored it, and the file was not written since: it could
        # have been another one at that time.
        if found and found.size == file.size and found.modified_ns > model.modified_ns(file):
            watch(file.size)
            continue
        _store(store, model, file, prefix, watch)
        stored += file.size
    return stored


def _store(store: Store, model: Collected, file: StoredFile, prefix: str, watch: Watch) -> None:
    model.check_unchanged(file)
    store.objects.upload(model.path(file), prefix + file.path, watch)
    try:
        model.check_unchanged(file)
    except TryAgain:
        store.objects.remove(prefix + file.path)
        raise


def _finish(
    store: Store, model: Collected, name: str, version: str, options: PushOptions
) -> VersionManifest:
    """Write the manifest, or take that of another push of the same content."""
    manifest = made(
        model.files,
        name=name,
        version=version,
        created=now(),
        by=user(),
        tool=f"batchpredict {__version__}",
        model_sha256=model.package.digest,
        metadata=dict(options.metadata),
    )
    if len(manifest.content) > versions.MOST_BYTES:
        raise ConfigInvalid(f"{name}: --meta is too large; put it into a file of the model")
    try:
        store.objects.create(version_key(name, version, MANIFEST), manifest.content)
    except Refused:
        return store.manifest(name, version)
    return manifest
