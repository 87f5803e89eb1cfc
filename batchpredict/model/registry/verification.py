"""Whether a version in a store is what its manifest says, byte by byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from batchpredict.errors import ConfigInvalid, TryAgain
from batchpredict.model.registry.cache import Cache
from batchpredict.model.registry.objects import Entry
from batchpredict.model.registry.reference import Reference
from batchpredict.model.registry.store import Store, version_key
from batchpredict.model.registry.versions import MANIFEST, StoredFile, VersionManifest
from batchpredict.s3 import Missing

Watch = Callable[[int], None]


def verify(
    store: Store, reference: Reference, cache: Cache | None = None, watch: Watch = lambda _: None
) -> tuple[VersionManifest | None, list[str]]:
    """The version, and in a line each what is wrong with it; nothing where it is as it was pushed.

    Also what `cache` has of it, if anything. `watch` is told of bytes read from the store. None
    where the manifest or alias is wrong itself. Raises Unavailable: a store that cannot be read
    says nothing about its content.
    """
    try:
        manifest = store.resolve(reference).manifest
    except ConfigInvalid as error:
        return None, [str(error)]
    prefix = version_key(manifest.name, manifest.version)
    try:
        found = {entry.key.removeprefix(prefix): entry for entry in store.objects.list(prefix)}
    except ConfigInvalid as error:  # a link in a folder
        return manifest, [str(error)]
    listed = {file.path for file in manifest.files}
    findings = [
        f"{path}: is no file of the version; somebody has added it"
        for path in sorted(found.keys() - listed - {MANIFEST})
    ]
    for file in manifest.files:
        wrong = _wrong(store, file, found.get(file.path), watch)
        if wrong:
            findings.append(f"{file.path}: {wrong}")
    if cache:
        findings += cache.findings(manifest.sha256)
    return manifest, findings


def _wrong(store: Store, file: StoredFile, entry: Entry | None, watch: Watch) -> str | None:
    if entry is None:
        return "is missing"
    if entry.size != file.size:
        return f"has {entry.size:,} bytes instead of {file.size:,}"
    digest = hashlib.sha256()
    try:
        for data in store.objects.chunks(entry):
            digest.update(data)
            watch(len(data))
    except Missing:
        return "is missing"
    except TryAgain as error:
        return str(error)
    if digest.hexdigest() != file.sha256:
        return f"has the sha256 {digest.hexdigest()} instead of {file.sha256}"
    return None
