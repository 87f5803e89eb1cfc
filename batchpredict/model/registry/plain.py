"""A model in a bucket without a store: all objects of a folder, or a graph with what it needs.

`s3://bucket/folder/` with a manifest.json of ours is that version, whatever it is called.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from re import fullmatch

from batchpredict import s3
from batchpredict.errors import ConfigInvalid
from batchpredict.model.graph_file import read_graph_file
from batchpredict.model.package import COMPANIONS
from batchpredict.model.registry import versions
from batchpredict.model.registry.blobs import Download
from batchpredict.model.registry.cache import Cache
from batchpredict.model.registry.reference import is_name
from batchpredict.model.registry.resolutions import Asked
from batchpredict.model.registry.versions import MANIFEST, MOST_FILES, StoredFile, VersionManifest
from batchpredict.s3 import Address, Missing, Stored

logger = logging.getLogger(__name__)

Watch = Callable[[int], None]
_Objects = dict[str, Stored]


class PlainFolder:
    """Where a run's `s3://…` model comes from. No network before `resolve`. Raises UsageError."""

    exact = False
    accepted: str | None = None

    def __init__(self, url: str, cache: Cache, watch: Watch = lambda _: None) -> None:
        address = s3.parse(url)
        self._cache = cache
        self._watch = watch
        self._contents: dict[str, StoredFile] = {}
        self._graph = ""
        key = address.key
        if key.endswith(".onnx"):
            folder, _, self._graph = key.rpartition("/")
            key = f"{folder}/" if folder else ""
        elif key and not key.endswith("/"):
            key += "/"
        self._folder = Address(address.bucket, key)
        self._objects: _Objects = {}
        self.url = self._folder.url + self._graph
        self.asked = Asked(f"{s3.endpoint() or ''} {self.url}", "", "")

    def __str__(self) -> str:
        return self.url

    def is_meant(self, manifest: VersionManifest) -> bool:  # noqa: ARG002 - any content is
        return True

    def resolve(self) -> tuple[VersionManifest, str | None, str]:
        """The version, None, and what tells it from a later one. Contents that are not known are
        fetched for it. Raises Missing, ConfigInvalid."""
        if not self._graph and (stored := self._own_manifest()):
            return stored, None, ""
        last = self._last()
        objects = self._graph_and_companions(last) if self._graph else self._listed()
        if last and _state(objects) == last[0]:
            self._objects = objects
            return last[1], None, last[0]
        if self._graph:
            objects |= self._external(objects)
        self._objects = objects
        return self._made(objects), None, _state(objects)

    def download(self, manifest: VersionManifest) -> Download:  # noqa: ARG002 - its files
        """What fetches a file of the version that `resolve` has found."""

        def fetch(file: StoredFile, path: Path) -> str:
            stored = self._objects.get(file.path) or s3.store().head(self._at(file.path))
            return s3.store().download(stored, path, self._watch)

        return fetch

    def _at(self, path: str) -> Address:
        return Address(self._folder.bucket, self._folder.key + path)

    def _last(self) -> tuple[str, VersionManifest] | None:
        """State and manifest of the last resolution, if its version is in the cache."""
        last = self._cache.last(self.asked)
        held = self._cache.look(last.manifest_sha256) if last else None
        if not (last and held):
            return None
        held.release()
        return last.state, held.manifest

    def _own_manifest(self) -> VersionManifest | None:
        where = self._at(MANIFEST)
        try:
            content, _ = s3.store().read(where, versions.MOST_BYTES)
        except Missing:
            self._check_finished()
            return None
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            return None
        if not (isinstance(document, dict) and {"manifest", "files"} <= document.keys()):
            return None
        return versions.parse_manifest(content, where.url)

    def _check_finished(self) -> None:
        """Raise Missing for a version of a store whose push has not ended."""
        folder = PurePosixPath(self._folder.key)
        if folder.parent.name != "versions":
            return
        claim = folder.parent.parent / "claims" / f"{folder.name}.json"
        try:
            s3.store().head(Address(self._folder.bucket, str(claim)))
        except Missing:
            return
        raise Missing(f"{self}: is a version that is not complete; push it again")

    def _listed(self) -> _Objects:
        found: _Objects = {}
        for stored in s3.store().list(self._folder):
            path = stored.address.key.removeprefix(self._folder.key)
            hidden = any(part.startswith(".") for part in path.split("/"))
            if hidden or path.endswith("/") or path in ("", MANIFEST):
                continue
            found[path] = stored
            if len(found) > MOST_FILES:
                raise ConfigInvalid(
                    f"{self}: has more than {MOST_FILES:,} objects; name the model's own folder"
                )
        if not found:
            raise Missing(f"{self}: there are no objects; check the name of the folder")
        # Else all of a bucket would be fetched because of a slip of the pen.
        if not any(fullmatch(r"(onnx/)?[^/]+\.onnx", path) for path in found):
            raise ConfigInvalid(f"{self}: there is no .onnx file; name the model's own folder")
        return found

    def _graph_and_companions(self, last: tuple[str, VersionManifest] | None) -> _Objects:
        """As read_package finds them; and the weights that this graph had last, if any."""
        name = self._graph
        found = self._present(COMPANIONS)
        if not found and PurePosixPath(self._folder.key).name == "onnx":
            key = self._folder.key.removesuffix("onnx/")
            self._folder = Address(self._folder.bucket, key)
            name = f"onnx/{self._graph}"
            found = self._present(COMPANIONS)
        graph = {name: s3.store().head(self._at(name))}
        known = [file.path for file in last[1].files] if last else []
        weights = self._present(path for path in known if path not in graph | found)
        return graph | found | weights

    def _present(self, paths: Iterable[str]) -> _Objects:
        found: _Objects = {}
        for path in paths:
            with contextlib.suppress(Missing):
                found[path] = s3.store().head(self._at(path))
        return found

    def _external(self, objects: _Objects) -> _Objects:
        """Weights in files of their own, which only the graph tells of."""
        (path,) = (path for path in objects if path.endswith(".onnx"))
        graph = self._fetched(path, objects[path])
        locations = read_graph_file(self._cache.blob(graph)).external
        folder = PurePosixPath(path).parent
        found: _Objects = {}
        for location in locations:
            name = (folder / location).as_posix()
            if reason := versions.unusable_paths([name]):
                raise ConfigInvalid(f"{self}: its weights: {reason}")
            found[name] = s3.store().head(self._at(name))
        return found

    def _made(self, objects: _Objects) -> VersionManifest:
        """A manifest of what is there, whose contents are all in the cache then."""
        if reason := versions.unusable_paths(objects):
            raise ConfigInvalid(f"{self}: {reason}; rename it")
        self._cache.check_room([_unknown(path, stored) for path, stored in objects.items()])
        total = sum(stored.size for stored in objects.values())
        logger.info("fetching %s: %s bytes", self, f"{total:,}")
        files = [self._fetched(path, stored) for path, stored in objects.items()]
        modified = max(stored.modified_ns for stored in objects.values()) // 10**9
        name = PurePosixPath(self._graph.removesuffix(".onnx") or self._folder.key).name
        return versions.made(
            files,
            name=name if is_name(name) else "model",
            version=_state(objects)[:12],
            created=datetime.fromtimestamp(modified, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            by="",
            tool="",
            model_sha256=None,
            metadata={},
        )

    def _fetched(self, path: str, stored: Stored) -> StoredFile:
        unknown = _unknown(path, stored)
        known = self._contents.get(path)
        if known is None:
            known = self._contents[path] = self._cache.take_in(self._fetch(stored), unknown)
        return known

    def _fetch(self, stored: Stored) -> Download:
        return lambda _, part: s3.store().download(stored, part, self._watch)


def _unknown(path: str, stored: Stored) -> StoredFile:
    """A file before its content is known: the digest is of the object's name and ETag."""
    told = f"{s3.endpoint() or ''} {stored.address.url} {stored.etag} {stored.size}"
    return StoredFile(path, stored.size, hashlib.sha256(told.encode()).hexdigest())


def _state(objects: _Objects) -> str:
    """Changes with any name or content."""
    listed = sorted((path, stored.etag, stored.size) for path, stored in objects.items())
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
