"""manifest.json: what a version of a model consists of. Written last, never changed.

It may come from a stranger: whatever is not as `made` writes it is refused before a path of it
is used.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchpredict.errors import ConfigInvalid
from batchpredict.model.manifest import shown
from batchpredict.model.registry.reference import is_name

MANIFEST = "manifest.json"
MOST_BYTES = 4 << 20
MOST_FILES = 4096
_LAYOUT = 1
_MOST_PATH = 512
_MOST_SIZE = 1 << 50
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEYS = {
    "manifest": int, "name": str, "version": str, "created": str, "by": str, "tool": str,
    "files": list, "model_sha256": str | None, "metadata": dict,
}  # fmt: skip


@dataclass(frozen=True)
class StoredFile:
    """`path`: relative to the version, POSIX. `size`: bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class VersionManifest:
    """A version. `content`: manifest.json as it is stored, whose sha256 names the version.

    `model_sha256`: of the files that the model reads, as in ModelPackage.digest; None where that
    was not known. `metadata`: what `--meta` gave.
    """

    name: str
    version: str
    created: str
    by: str
    tool: str
    files: tuple[StoredFile, ...]
    model_sha256: str | None
    metadata: Mapping[str, str]
    content: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def made(files: Iterable[StoredFile], **keys: Any) -> VersionManifest:
    """A manifest of `files` and the other keys of VersionManifest. Raises ConfigInvalid."""
    listed = [vars(file) for file in sorted(files, key=lambda file: file.path)]
    document = {"manifest": _LAYOUT, **keys, "files": listed}
    return parse_manifest(canonical(document), f"{keys['name']}@{keys['version']}")


def content_sha256(files: Iterable[StoredFile], metadata: Mapping[str, str]) -> str:
    """What two pushes of the same have in common."""
    listed = [vars(file) for file in sorted(files, key=lambda file: file.path)]
    return hashlib.sha256(canonical({"files": listed, "metadata": dict(metadata)})).hexdigest()


def canonical(document: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and no spaces, ended by a newline."""
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return (text + "\n").encode()


def parse_manifest(content: bytes, where: str) -> VersionManifest:
    """Raises ConfigInvalid, which begins with `where`."""
    document = json_object(content, where)
    if document.get("manifest") != _LAYOUT or type(document["manifest"]) is not int:
        raise ConfigInvalid(
            f"{where}: manifest {shown(document.get('manifest'))}: only layout {_LAYOUT} is known;"
            " use a newer batchpredict or push the model again"
        )
    check_keys(document, _KEYS, where)
    for key in ("name", "version"):
        if not is_name(document[key]):
            raise _wrong(where, f"{key} {shown(document[key])} is no name")
    sha256 = document["model_sha256"]
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise _wrong(where, "model_sha256 is no sha256")
    if not all(isinstance(value, str) for value in document["metadata"].values()):
        raise _wrong(where, "metadata must be texts")
    document["files"] = _files(document["files"], where)
    document.pop("manifest")
    return VersionManifest(**document, content=content)


def json_object(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object without lone surrogates. Raises ConfigInvalid."""
    try:
        document = json.loads(content)
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _wrong(where, f"not JSON: {reason}") from error
    if not isinstance(document, dict):
        raise _wrong(where, "must hold a JSON object")
    return document


def check_keys(document: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> None:
    """Exactly these keys with values of these types. Raises ConfigInvalid."""
    for key in sorted(document.keys() ^ kinds.keys()):
        what = "is missing" if key in kinds else "is unknown"
        raise _wrong(where, f"the key {shown(key)} {what}")
    for key, kind in kinds.items():
        value = document[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _wrong(where, f"{key}: {shown(value)} is of a wrong type")


def _wrong(where: str, what: str) -> ConfigInvalid:
    return ConfigInvalid(f"{where}: {what}; verify the store, or push the model again")


def _files(entries: list[Any], where: str) -> tuple[StoredFile, ...]:
    if not 0 < len(entries) <= MOST_FILES:
        raise _wrong(where, f"has {len(entries):,} files, not 1 to {MOST_FILES:,}")
    files = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise _wrong(where, f"files: {shown(entry)} is no object")
        check_keys(entry, {"path": str, "size": int, "sha256": str}, f"{where}: files")
        if not 0 <= entry["size"] <= _MOST_SIZE:
            raise _wrong(where, f"{shown(entry['path'])}: size {shown(entry['size'])} is none")
        if not _SHA256.fullmatch(entry["sha256"]):
            raise _wrong(where, f"{shown(entry['path'])}: {shown(entry['sha256'])} is no sha256")
        files.append(StoredFile(**entry))
    if reason := unusable_paths([file.path for file in files]):
        raise _wrong(where, f"files: {reason}")
    return tuple(sorted(files, key=lambda file: file.path))


def unusable_paths(paths: Iterable[str]) -> str | None:
    """Why these cannot be the files of a version; None where they can.

    What one file system takes for two files must not be one file, or a directory, on another.
    """
    known: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        if reason := _unusable(path, parts):
            return f"the path {shown(path)} {reason}"
        same = unicodedata.normalize("NFC", path).casefold()
        if same in known:
            return f"the paths {shown(known[same])} and {shown(path)} are one on some file systems"
        known[same] = path
        above = same.split("/")
        for end in range(1, len(above)):
            folders.setdefault("/".join(above[:end]), path)
    for same in known.keys() & folders.keys():
        return f"the path {shown(known[same])} is a file and the folder of {shown(folders[same])}"
    return None


def _unusable(path: str, parts: list[str]) -> str | None:
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    if not path or path.startswith("/"):
        return "is not relative"
    if size > _MOST_PATH or any(len(part.encode()) > 255 for part in parts):
        return "is too long"
    if any(part.startswith(".") for part in parts):
        return "has a part that starts with a dot"
    if any(not part or part != part.strip() for part in parts):
        return "has an empty part, or one with spaces at an end"
    if any(not character.isprintable() or character == "\\" for character in path):
        return "has a character that is not allowed"
    if unicodedata.normalize("NFC", path).casefold() == MANIFEST:
        return f"is that of the version's own {MANIFEST}"
    return None
