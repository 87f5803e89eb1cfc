"""Remove a version from a store. Its number stays reserved: it never means other files."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from batchpredict.errors import ConfigInvalid, UsageError
from batchpredict.model.registry.aliases import now
from batchpredict.model.registry.pushing import Claim, read_claim
from batchpredict.model.registry.reference import check_alias, check_name, check_version
from batchpredict.model.registry.store import Store, alias_key, claim_key, version_key
from batchpredict.model.registry.versions import MANIFEST, VersionManifest
from batchpredict.s3 import Missing, Refused


def remove(store: Store, name: str, version: str) -> int:
    """Remove a version, also what is left of one; bytes that were removed.

    Raises UsageError where an alias names it, Missing where there is none.
    """
    check_name(name, "a model")
    check_version(version)
    _check_unnamed(store, name, version)
    if not (store.is_claimed(name, version) or version in store.versions(name)):
        store.manifest(name, version)  # raises
    _mark(store, name, version, now())
    # From now on no push completes it: each looks at its claim after it has written the manifest.
    manifest = _manifest(store, name, version)
    store.objects.remove(version_key(name, version, MANIFEST))
    if manifest:
        _put_back_if_named(store, name, version, manifest)
    removed = 0
    for entry in list(store.objects.list(version_key(name, version))):
        store.objects.remove(entry.key)
        removed += entry.size
    return removed


def remove_alias(store: Store, name: str, alias: str) -> None:
    """Remove an alias with its history, also a damaged one. Raises Missing."""
    check_name(name, "a model")
    check_alias(alias)
    key = alias_key(name, alias)
    store.objects.entry(key)
    store.objects.remove(key)


def _check_unnamed(store: Store, name: str, version: str) -> None:
    names = [alias.alias for alias in store.aliases(name) if alias.version == version]
    if names:
        raise UsageError(
            f"{name}@{version}: is what {', '.join(names)} names; promote another version first"
        )


def _put_back_if_named(store: Store, name: str, version: str, manifest: VersionManifest) -> None:
    """Where somebody promoted it after we looked, it stays."""
    try:
        _check_unnamed(store, name, version)
    except UsageError:
        with contextlib.suppress(Refused):  # another removal has put it back
            store.objects.create(version_key(name, version, MANIFEST), manifest.content)
        _mark(store, name, version, None)
        raise


def _manifest(store: Store, name: str, version: str) -> VersionManifest | None:
    """None of a version that is not complete, or damaged."""
    try:
        return store.manifest(name, version)
    except (Missing, ConfigInvalid):
        return None


def _mark(store: Store, name: str, version: str, removed: str | None) -> None:
    """Note in the claim that pushes must not go on with this version, or that they may again."""
    while True:
        try:
            claim, etag = read_claim(store, name, version)
        except Missing:  # a version that was copied here by hand
            claim, etag = Claim("", now(), ""), ""
        try:
            content = replace(claim, removed=removed).encode()
            if etag:
                store.objects.replace(claim_key(name, version), content, etag)
            else:
                store.objects.create(claim_key(name, version), content)
            return
        except Refused:
            continue
