"""Versions of models on this machine, each file fetched once and checked before it is used.

    blobs/<sha256>                         files by content, read-only
    versions/<sha256 of the manifest>/     manifest.json, and in files/ hard links to blobs
    resolved/                              what references meant last
    locks/                                 see cache_locks.py

A version is made aside and gets its name complete. Whoever uses one holds a shared lock on its
manifest.json, so that it is not pruned; its time of change is when it was used last.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchpredict.errors import ConfigInvalid, OutputWriteFailed
from batchpredict.model.cache_folder import cache_folder
from batchpredict.model.registry import cache_locks, versions
from batchpredict.model.registry.blobs import Blobs, Download, is_regular, sha256_of
from batchpredict.model.registry.resolutions import Asked, Resolution, Resolutions
from batchpredict.model.registry.versions import MANIFEST, VersionManifest, parse_manifest

logger = logging.getLogger(__name__)

_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Models that batchpredict has fetched. See https://bford.info/cachedir/\n"
)
_FILES = "files"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Damaged(Exception):
    """A version in the cache is not what its manifest says."""


@dataclass(frozen=True)
class Held:
    """A version in the cache that is not pruned until `release`. `directory`: of its files."""

    manifest: VersionManifest
    directory: Path
    descriptor: int

    def release(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True)
class Pruned:
    """(name, version) that were removed and that are in use. `freed_bytes`: of contents."""

    removed: tuple[tuple[str, str], ...]
    in_use: tuple[tuple[str, str], ...]
    freed_bytes: int


@dataclass(frozen=True)
class _Cached:
    """`name`, `version`: "" of one whose manifest is damaged."""

    sha256: str
    name: str
    version: str
    used_ns: int


class Cache:
    """Raises ConfigInvalid (the folder cannot be used), OutputWriteFailed (the disk is full)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions = folder / "versions"
        self._locks = folder / "locks"
        self._blobs = Blobs(folder / "blobs", self._locks)
        self._resolved = Resolutions(folder / "resolved")

    @classmethod
    def of_user(cls) -> Cache:
        return cls(cache_folder("models", "models of a store are kept"))

    def look(self, sha256: str) -> Held | None:
        """The version whose manifest has this sha256; None where it is not here, or damaged.

        Its files have the right names and sizes; what is in them is the caller's to check.
        """
        with self._errors():
            try:
                return self._look(sha256)
            except Damaged as error:
                logger.warning("%s", error)
                return None

    def hold(self, manifest: VersionManifest, download: Download) -> Held:
        """The version, fetched where it is not here, or damaged.

        Raises what `download` does, and ConfigInvalid where that brings something else.
        """
        return self.look(manifest.sha256) or self._made(manifest, download, checked=False)

    def renew(self, manifest: VersionManifest, download: Download) -> Held:
        """As `hold`, of a version that was found to have other bytes."""
        return self._made(manifest, download, checked=True)

    def _made(self, manifest: VersionManifest, download: Download, *, checked: bool) -> Held:
        with self._errors():
            self._prepare()
            what = f"{manifest.name}@{manifest.version}"
            with cache_locks.waiting(self._locks / manifest.sha256, what):
                for _ in range(2):
                    try:
                        held = self._look(manifest.sha256)
                        if held and not (checked and _is_damaged(held)):
                            return held
                    except Damaged:
                        held = None
                    self._discard(manifest.sha256)
                    self._install(manifest, download)
                    checked = False
        raise ConfigInvalid(
            f"{self.folder}: {what}: is damaged again and again; check the disk (dmesg), or set"
            " XDG_CACHE_HOME to another folder"
        )

    def _look(self, sha256: str) -> Held | None:
        """Raises Damaged, OSError."""
        home = self._versions / sha256
        descriptor = _locked_manifest(home)
        if descriptor is None:
            return None
        try:
            content = os.pread(descriptor, versions.MOST_BYTES + 1, 0)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise Damaged(f"{home / MANIFEST}: is damaged")
            manifest = parse_manifest(content, str(home / MANIFEST))
            _check_files(home / _FILES, manifest)
            try:
                os.utime(descriptor)
            except OSError as error:
                # Prepared by somebody else, who does not prune it either.
                if error.errno not in (errno.EPERM, errno.EACCES, errno.EROFS):
                    raise
                logger.debug("%s: its time of use cannot be noted", home)
        except BaseException:
            os.close(descriptor)
            raise
        return Held(manifest, home / _FILES, descriptor)

    def _install(self, manifest: VersionManifest, download: Download) -> None:
        self._blobs.check_room(manifest.files)
        aside = self._aside(manifest.sha256)
        try:
            (aside / _FILES).mkdir(parents=True)
            for file in manifest.files:
                path = aside / _FILES / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                self._blobs.place(file, path, download)
            (aside / MANIFEST).write_bytes(manifest.content)
            try:
                aside.replace(self._versions / manifest.sha256)
            except OSError as error:
                # Where locks do not work another process may have been faster.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        finally:
            _remove_tree(aside)

    def _discard(self, sha256: str) -> None:
        """Take a version away, if there is one. Contents are checked before they are used again."""
        aside = self._aside(sha256)
        try:
            (self._versions / sha256).replace(aside)
        except FileNotFoundError:
            return
        _remove_tree(aside)

    def _aside(self, sha256: str) -> Path:
        return self._versions / f".{sha256}.{secrets.token_hex(4)}"

    def take_in(self, download: Download, file: versions.StoredFile) -> versions.StoredFile:
        """Fetch a file whose content is not known before; `file.sha256` names the place."""
        with self._errors():
            self._prepare()
            part = self.folder / "blobs" / f"{file.sha256}.part"
            known = part.with_suffix(".sha256")
            with cache_locks.waiting(self._locks / file.sha256, file.path):
                # Another process may have fetched it while this one waited.
                digest = known.read_text("ascii", "replace") if known.is_file() else ""
                if not (re.fullmatch(r"[0-9a-f]{64}", digest) and self._has(digest, file.size)):
                    digest = download(file, part)
                    self._blobs.take_in(part, digest)
                    known.write_text(digest)
            return versions.StoredFile(file.path, file.size, digest)

    def _has(self, digest: str, size: int) -> bool:
        return is_regular(self.folder / "blobs" / digest, size)

    def blob(self, file: versions.StoredFile) -> Path:
        """Where the content of a file is that was taken in."""
        return self.folder / "blobs" / file.sha256

    def findings(self, sha256: str) -> list[str]:
        """What is wrong with the version in the cache, a line each; all of it is read."""
        with self._errors():
            try:
                held = self._look(sha256)
            except Damaged as error:
                return [str(error)]
            if held is None:
                return []
            try:
                return findings(held)
            finally:
                held.release()

    def check_room(self, files: list[versions.StoredFile]) -> None:
        """Raise OutputWriteFailed where they do not fit."""
        with self._errors():
            self._prepare()
            self._blobs.check_room(files)

    def last(self, asked: Asked) -> Resolution | None:
        """What a reference meant when it was last resolved; None where it never was."""
        with self._errors():
            return self._resolved.last(asked)

    def note(self, asked: Asked, answer: Resolution) -> None:
        with self._errors():
            self._resolved.note(asked, answer)

    def prune(self, keep: int) -> Pruned:
        """Leave the `keep` versions of each model that were used last, and those in use."""
        removed: list[tuple[str, str]] = []
        in_use: list[tuple[str, str]] = []
        if not self.folder.is_dir():
            return Pruned((), (), 0)
        with self._errors():
            self._prepare()
            kept: dict[str, int] = {}
            for cached in sorted(self._all(), key=lambda c: c.used_ns, reverse=True):
                kept[cached.name] = kept.get(cached.name, 0) + 1
                if cached.name and kept[cached.name] <= keep:
                    continue
                gone = self._remove_unused(cached.sha256)
                name = cached.name or cached.sha256
                (removed if gone else in_use).append((name, cached.version))
            self._remove_leftovers()
            freed = self._blobs.prune()
            self._resolved.prune(lambda sha256: (self._versions / sha256).is_dir())
            for path in list(self._locks.iterdir()):
                with cache_locks.trying(path):
                    pass
        return Pruned(tuple(removed), tuple(in_use), freed)

    def _all(self) -> Iterator[_Cached]:
        for home in list(self._versions.iterdir()):
            if home.name.startswith("."):
                continue
            try:
                path = home / MANIFEST
                manifest = parse_manifest(path.read_bytes(), str(path))
                name, version = manifest.name, manifest.version
                yield _Cached(home.name, name, version, path.stat().st_mtime_ns)
            except (OSError, ConfigInvalid):
                yield _Cached(home.name, "", "", 0)

    def _remove_unused(self, sha256: str) -> bool:
        """Whether nobody used it; then it is gone."""
        home, aside = self._versions / sha256, self._aside(sha256)
        try:
            descriptor = os.open(home / MANIFEST, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            descriptor = -1  # damaged: nobody can use it
        try:
            if descriptor >= 0 and not cache_locks.lock(descriptor, fcntl.LOCK_EX):
                return False
            home.replace(aside)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        _remove_tree(aside)
        return True

    def _remove_leftovers(self) -> None:
        """What killed processes were making or taking away."""
        for path in list(self._versions.glob(".*")):
            with cache_locks.trying(self._locks / path.name.split(".")[1]) as free:
                if free:
                    _remove_tree(path)

    def _prepare(self) -> None:
        for folder in (self._versions, self._locks, self.folder / "blobs"):
            folder.mkdir(parents=True, exist_ok=True)
        tag = self.folder / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_text(_TAG)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self.folder
            reason = os.strerror(error.errno or 0).lower()
            if error.errno in _FULL:
                raise OutputWriteFailed(
                    f"{where}: {reason}; free some space (batchpredict models prune) or set"
                    " XDG_CACHE_HOME to another folder"
                ) from error
            raise ConfigInvalid(
                f"{where}: {reason}; models of a store are kept there, set XDG_CACHE_HOME to a"
                " folder that can be written"
            ) from error


def findings(held: Held) -> list[str]:
    """Which files of a version have other bytes than its manifest says; all are read."""
    found = []
    for file in held.manifest.files:
        path = held.directory / file.path
        if not is_regular(path, file.size):
            found.append(f"{path}: is missing or has another size")
        elif sha256_of(path) != file.sha256:
            found.append(f"{path}: has other bytes than were fetched")
    return found


def _is_damaged(held: Held) -> bool:
    """Then it is released."""
    if not findings(held):
        return False
    held.release()
    return True


def _remove_tree(path: Path) -> None:
    """What cannot be removed now is left to `prune`."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _locked_manifest(home: Path) -> int | None:
    """Its manifest, open and locked; None where there is none."""
    path = home / MANIFEST
    if home.is_symlink():
        raise Damaged(f"{home}: is a link")
    while True:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            if home.is_dir():
                raise Damaged(f"{path}: is missing") from None
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise Damaged(f"{path}: is a link") from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Damaged(f"{path}: is no file")
        if cache_locks.lock(descriptor, fcntl.LOCK_SH) and cache_locks.is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # it is being pruned


def _check_files(directory: Path, manifest: VersionManifest) -> None:
    """Raise Damaged where these are not exactly the files of the version."""
    if directory.is_symlink():
        raise Damaged(f"{directory}: is a link")
    expected = {file.path: file.size for file in manifest.files}
    found = set(_names(directory))
    for path in sorted(found - expected.keys()):
        raise Damaged(f"{directory / path}: is no file of {manifest.name}@{manifest.version}")
    for path, size in expected.items():
        if not is_regular(directory / path, size):
            raise Damaged(f"{directory / path}: is missing, a link, or has another size")


def _names(directory: Path) -> Iterator[str]:
    """Everything below that is no folder; links to folders are not followed."""
    for folder, folders, files in os.walk(directory):
        here = Path(folder).relative_to(directory)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from ((here / name).as_posix() for name in files + links)
