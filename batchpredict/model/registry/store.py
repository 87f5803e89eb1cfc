"""A store of models: immutable versions and the aliases that name them.

    <name>/versions/<version>/<path>          files
    <name>/versions/<version>/manifest.json   written last: without it there is no version
    <name>/claims/<version>.json              reserves a version for one content, for ever
    <name>/aliases/<alias>.json               changed by compare-and-swap

See pushing.py, removal.py and verification.py for what else is done with one.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from batchpredict import s3
from batchpredict.errors import ConfigInvalid, TryAgain, Unavailable, UsageError
from batchpredict.model.manifest import nearest
from batchpredict.model.registry import aliases, versions
from batchpredict.model.registry.aliases import Action, Alias, first_of, moved, parse_alias
from batchpredict.model.registry.bucket import BucketObjects
from batchpredict.model.registry.folder import FolderObjects
from batchpredict.model.registry.objects import Objects
from batchpredict.model.registry.reference import (
    LATEST,
    Reference,
    check_alias,
    check_name,
    check_version,
    is_name,
    is_number,
)
from batchpredict.model.registry.versions import MANIFEST, VersionManifest, parse_manifest
from batchpredict.s3 import Missing, Refused

logger = logging.getLogger(__name__)

# Each time another change of the same alias came in between.
_MOST_SWAPS = 100


@dataclass(frozen=True)
class Resolved:
    """What a reference means now. `alias`: None where a version was named."""

    manifest: VersionManifest
    alias: str | None


@dataclass(frozen=True)
class Model:
    """`versions`: oldest first. `unfinished`: reserved by a push that has not ended, or removed."""

    name: str
    versions: tuple[VersionManifest, ...]
    aliases: tuple[Alias, ...]
    unfinished: tuple[str, ...] = ()

    def aliases_of(self, version: str) -> tuple[str, ...]:
        return tuple(alias.alias for alias in self.aliases if alias.version == version)


@dataclass(frozen=True)
class RolledBack:
    """`skipped`: versions between that have been removed since."""

    alias: Alias
    skipped: tuple[str, ...]


def open_store(location: str) -> Store:
    """`s3://BUCKET/FOLDER/` or a folder, which need not exist yet; no network.

    Raises UsageError.
    """
    if s3.is_url(location):
        return Store(BucketObjects(location))
    if not location:
        raise UsageError("--model_store is empty; give s3://BUCKET/FOLDER/ or a directory")
    path = os.path.abspath(os.path.expanduser(location))  # noqa: PTH100, PTH111
    return Store(FolderObjects(Path(path)))


class Store:
    """Raises Unavailable (Missing where there is no such model, version or alias), UsageError of
    names, ConfigInvalid of what lies in the store and is not ours.
    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.url = objects.url

    def __str__(self) -> str:
        return self.url

    # Reading

    def resolve(self, reference: Reference) -> Resolved:
        """The version a reference means. Where it gives a digest and no selector, any version
        that has it."""
        selector = reference.selector or LATEST
        if is_number(selector):
            found = Resolved(self.manifest(reference.name, selector), None)
        elif (alias := self.alias(reference.name, selector)) is not None:
            found = Resolved(self._aliased(reference.name, alias), selector)
        else:
            found = Resolved(self._version_or_alias(reference, selector), None)
        wanted = reference.manifest_sha256
        if wanted in (None, found.manifest.sha256):
            return found
        others = self._manifests(reference.name) if reference.selector is None else iter(())
        for manifest in others:
            if manifest.sha256 == wanted:
                return Resolved(manifest, None)
        raise ConfigInvalid(
            f"{reference}: version {found.manifest.version} in {self} has the manifest"
            f" sha256:{found.manifest.sha256}, which is not accepted; check which version is meant"
        )

    def manifest(self, name: str, version: str) -> VersionManifest:
        """A complete version. Raises Missing, ConfigInvalid."""
        check_name(name, "a model")
        check_version(version)
        key = version_key(name, version, MANIFEST)
        try:
            content, _ = self.objects.read(key, versions.MOST_BYTES)
        except Missing as error:
            raise Missing(
                f"{name}@{version}: no such version in {self}; see: batchpredict models list"
            ) from error
        manifest = parse_manifest(content, f"{self}: {key}")
        if (manifest.name, manifest.version) != (name, version):
            raise ConfigInvalid(
                f"{self}: {key}: is the manifest of {manifest.name}@{manifest.version}; remove the"
                " version and push it again"
            )
        return manifest

    def exists(self, name: str, version: str) -> bool:
        """Whether there is such a version, complete."""
        try:
            self.manifest(name, version)
        except Missing:
            return False
        return True

    def alias(self, name: str, alias: str) -> Alias | None:
        """None where there is none."""
        found = self._read_alias(name, alias)
        return found[0] if found else None

    def _read_alias(self, name: str, alias: str) -> tuple[Alias, str] | None:
        check_name(name, "a model")
        key = alias_key(name, alias)
        try:
            content, etag = self.objects.read(key, aliases.MOST_BYTES)
        except Missing:
            return None
        return parse_alias(content, f"{self}: {key}"), etag

    def _aliased(self, name: str, alias: Alias) -> VersionManifest:
        manifest = self.manifest(name, alias.version)
        if manifest.sha256 != alias.manifest_sha256:
            raise ConfigInvalid(
                f"{name}@{alias.alias}: version {alias.version} in {self} is not the one that was"
                f" promoted (sha256:{alias.manifest_sha256}); verify it and promote it again"
            )
        return manifest

    def _version_or_alias(self, reference: Reference, selector: str) -> VersionManifest:
        """The version of a given name, or what is told where there is neither."""
        if reference.selector is not None:
            with contextlib.suppress(Missing):  # what is told below says more
                return self.manifest(reference.name, selector)
        known = list(self.objects.folders("")) if not self._has(reference.name) else None
        if known is not None:
            raise Missing(
                f"{reference.name}: no such model in {self}{nearest(reference.name, known)}; a"
                f" directory of this name is --model=./{reference.name}"
            )
        names = [alias.alias for alias in self.aliases(reference.name)]
        raise Missing(
            f"{reference.name}@{selector}: no such alias or version in {self}"
            f"{nearest(selector, names)}; see: batchpredict models show {reference.name}"
        )

    def _has(self, name: str) -> bool:
        return next(self.objects.list(f"{name}/"), None) is not None

    def aliases(self, name: str) -> tuple[Alias, ...]:
        """Sorted by name."""
        names = [
            entry.key.rpartition("/")[2].removesuffix(".json")
            for entry in self.objects.list(f"{name}/aliases/")
            if entry.key.count("/") == 2 and entry.key.endswith(".json")
        ]
        found = [self.alias(name, alias) for alias in sorted(names) if is_name(alias)]
        return tuple(alias for alias in found if alias)

    def versions(self, name: str) -> tuple[str, ...]:
        """Every version that is there, complete or not: numbers in their order, then names."""
        found = [v for v in self.objects.folders(f"{name}/versions/") if is_name(v)]
        return tuple(sorted(found, key=_order))

    def _manifests(self, name: str) -> Iterator[VersionManifest]:
        """Complete versions, the newest number first."""
        for version in reversed(self.versions(name)):
            try:
                yield self.manifest(name, version)
            except Missing:
                continue
            except ConfigInvalid as error:  # which is no reason to hide all others
                logger.warning("%s", error)

    def models(self) -> tuple[Model, ...]:
        """Everything in the store, by name."""
        names = sorted(name for name in self.objects.folders("") if is_name(name))
        shown = (self._model(name) for name in names)
        return tuple(model for model in shown if model.versions or model.unfinished)

    def model(self, name: str) -> Model:
        """Raises Missing."""
        check_name(name, "a model")
        if not self._has(name):
            self._version_or_alias(Reference(name), LATEST)  # raises
        return self._model(name)

    def _model(self, name: str) -> Model:
        complete = tuple(reversed(list(self._manifests(name))))
        there = {manifest.version for manifest in complete}
        unfinished = tuple(version for version in self.versions(name) if version not in there)
        return Model(name, complete, self.aliases(name), unfinished)

    # Changing

    def promote(
        self, name: str, version: str, alias: str, why: str = "", action: Action = "promote"
    ) -> Alias:
        """Make an alias name a version. Raises Missing, UsageError (a version has this name).

        A push that finds the alias where it wants it changes nothing; a promotion is noted in any
        case, as somebody has decided it.
        """
        check_alias(alias)
        manifest = self.manifest(name, version)
        if self.is_claimed(name, alias):
            raise UsageError(f"{alias!r}: is a version of {name}; choose another name")
        to = (version, manifest.sha256)

        def decide(now: Alias | None) -> Alias | None:
            if action == "push" and now and (now.version, now.manifest_sha256) == to:
                return None
            return moved(now, alias, to, action, why)

        changed = self._swap(name, alias, decide)
        self._check_still_there(name, changed)
        return changed

    def rollback(self, name: str, alias: str, why: str = "") -> RolledBack:
        """Make an alias name what it named before; done again, what it named before that.

        Raises Missing (no such alias), ConfigInvalid (nothing to go back to).
        """
        check_alias(alias)
        skipped: list[str] = []

        def decide(now: Alias | None) -> Alias:
            if now is None:
                raise Missing(f"{name}@{alias}: no such alias in {self}; nothing to roll back")
            # Where what lay between was removed, the version it names now may come once more.
            past = (version for version in reversed(now.past()) if version != now.version)
            target, gone = first_of(past, lambda v: self.exists(name, v))
            skipped[:] = gone
            if target is None:
                lost = f" ({', '.join(gone)} have been removed)" if gone else ""
                raise ConfigInvalid(
                    f"{name}@{alias}: nothing to go back to from version {now.version}{lost};"
                    f" name one: batchpredict models promote {name} VERSION --alias {alias}"
                )
            to = (target, self.manifest(name, target).sha256)
            return moved(now, alias, to, "rollback", why)

        changed = self._swap(name, alias, decide)
        self._check_still_there(name, changed)
        return RolledBack(changed, tuple(skipped))

    def _swap(self, name: str, alias: str, decide: Callable[[Alias | None], Alias | None]) -> Alias:
        """Change an alias whatever others do meanwhile; `decide` is asked again after each of
        their changes, and says None where nothing is to be changed."""
        key = alias_key(name, alias)
        tried: str | None = None
        for _ in range(_MOST_SWAPS):
            found = self._read_alias(name, alias)
            if found and any(change.id == tried for change in found[0].history):
                return found[0]  # an answer was lost on its way, and the retry met our own change
            changed = decide(found[0] if found else None)
            if changed is None:
                assert found is not None
                return found[0]
            tried = changed.history[-1].id
            try:
                if found:
                    self.objects.replace(key, changed.encode(), found[1])
                else:
                    self.objects.create(key, changed.encode())
            except Refused:
                continue
            return changed
        raise TryAgain(f"{name}@{alias}: others keep changing it; try again")

    def _check_still_there(self, name: str, alias: Alias) -> None:
        """Undo what names a version that was removed meanwhile: a removal looks for aliases after
        the manifest has gone, so that one of both sees the other."""
        if self.exists(name, alias.version):
            return
        earlier, _ = first_of(reversed(alias.past()), lambda v: self.exists(name, v))
        if earlier is None:
            self.objects.remove(alias_key(name, alias.alias))
        else:
            self._move_back(name, alias, earlier)
        raise Unavailable(
            f"{name}@{alias.alias}: version {alias.version} was removed at the same time; promote"
            " another version"
        )

    def _move_back(self, name: str, alias: Alias, earlier: str) -> None:
        to = (earlier, self.manifest(name, earlier).sha256)
        why = f"version {alias.version} was removed"

        def decide(now: Alias | None) -> Alias | None:
            if now is None:
                raise Missing(f"{name}@{alias.alias}: has been removed meanwhile; {why} too")
            if now.version != alias.version:
                return None
            return moved(now, alias.alias, to, "rollback", why)

        self._swap(name, alias.alias, decide)

    def is_claimed(self, name: str, version: str) -> bool:
        """Whether a push has ever reserved this version."""
        try:
            self.objects.entry(claim_key(name, version))
        except Missing:
            return False
        return True


def _order(version: str) -> tuple[bool, int, str]:
    return (not is_number(version), int(version) if is_number(version) else 0, version)


def version_key(name: str, version: str, path: str = "") -> str:
    return f"{name}/versions/{version}/{path}"


def claim_key(name: str, version: str) -> str:
    return f"{name}/claims/{version}.json"


def alias_key(name: str, alias: str) -> str:
    return f"{name}/aliases/{alias}.json"
