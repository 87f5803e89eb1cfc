"""A store in a folder: what a bucket does, by renames and a lock.

A folder may come from strangers or lie on a network: links in it are refused, and an empty or
missing one is taken for a mount that is not there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from batchpredict.errors import (
    BatchPredictError,
    ConfigInvalid,
    OutputWriteFailed,
    Unavailable,
)
from batchpredict.model.registry.objects import Entry
from batchpredict.s3 import Missing, Refused

_CHUNK_BYTES = 1 << 20
_LOCK = ".lock"
_NOT_PERMITTED = (errno.EACCES, errno.EPERM, errno.EROFS)


class FolderObjects:
    """Objects are files below `root`. Files whose names start with a dot are ours and no objects.

    A killed writer leaves such a file behind, which its next push of the same object removes.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = self.identity = str(root)

    def prepare(self) -> None:
        with self._locked():
            pass

    def read(self, key: str, most: int) -> tuple[bytes, str]:
        with self._opened(key) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ConfigInvalid(f"{self._root / key}: has more than {most:,} bytes; remove it")
        return content, _etag(content)

    def entry(self, key: str) -> Entry:
        with self._opened(key) as file:
            return _entry(key, os.fstat(file.fileno()))

    def list(self, prefix: str) -> Iterator[Entry]:
        for name, kind in self._children(prefix):
            if stat.S_ISDIR(kind):
                yield from self.list(f"{prefix}{name}/")
                continue
            # One that is removed meanwhile is none.
            with contextlib.suppress(Missing):
                yield self.entry(f"{prefix}{name}")

    def folders(self, prefix: str) -> Iterator[str]:
        for name, kind in self._children(prefix):
            if stat.S_ISDIR(kind) and next(self.list(f"{prefix}{name}/"), None):
                yield name

    def create(self, key: str, content: bytes) -> None:
        with self._locked(), self._draft(key) as (file, temporary):
            file.write(content)
            _make_durable(file)
            try:
                os.link(temporary, self._root / key)
            except FileExistsError:
                raise Refused(f"{self._root / key}: is there already") from None

    def replace(self, key: str, content: bytes, etag: str) -> None:
        with self._locked():
            try:
                with self._opened(key) as file:
                    before = file.read()
            except Missing as error:
                raise Refused(f"{self._root / key}: has been removed") from error
            if _etag(before) != etag:
                raise Refused(f"{self._root / key}: has changed")
            with self._draft(key) as (draft, temporary):
                draft.write(content)
                _make_durable(draft)
                temporary.replace(self._root / key)

    def remove(self, key: str) -> None:
        path = self._path(key)
        with self._errors(path), self._locked():
            path.unlink(missing_ok=True)
            # Empty folders would be left for ever; the model's own is where others may write now.
            for folder in path.parents[: key.count("/") - 1]:
                try:
                    folder.rmdir()
                except OSError:  # not empty, or a push has just made a file in it
                    break

    def fetch(self, entry: Entry, path: Path, watch: Callable[[int], None]) -> str:
        digest = hashlib.sha256()
        with path.open("wb") as target:
            for data in self.chunks(entry):
                target.write(data)
                digest.update(data)
                watch(len(data))
        return digest.hexdigest()

    def upload(self, path: Path, key: str, watch: Callable[[int], None]) -> None:
        with self._draft(key) as (draft, temporary):
            with path.open("rb") as source:
                while data := source.read(_CHUNK_BYTES):
                    draft.write(data)
                    watch(len(data))
            _make_durable(draft)
            temporary.replace(self._root / key)

    def chunks(self, entry: Entry) -> Iterator[bytes]:
        with self._opened(entry.key) as file:
            if _entry(entry.key, os.fstat(file.fileno())) != entry:
                raise Unavailable(f"{self._root / entry.key}: has been replaced; try again")
            while data := file.read(_CHUNK_BYTES):
                yield data

    def _path(self, key: str) -> Path:
        """Where an object is, or would be. Raises ConfigInvalid where a link is on the way."""
        path = self._root
        for part in key.split("/"):
            if part in ("", ".", ".."):
                raise ConfigInvalid(f"{self._root}: {key!r} is no name of an object in a store")
            path = path / part
            if path.is_symlink():
                raise ConfigInvalid(f"{path}: a link has no place in a model store; remove it")
        return path

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        with self._errors(path):
            # A FIFO without a writer would wait for one.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with os.fdopen(os.open(path, flags), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise Missing(f"{path}: is no file")
                yield file

    def _children(self, prefix: str) -> tuple[tuple[str, int], ...]:
        """(name, mode) one level below, sorted. Raises ConfigInvalid where one is a link."""
        folder = self._path(prefix.removesuffix("/")) if prefix else self._root
        found = []
        with self._errors(folder):
            try:
                names = sorted(os.listdir(folder))  # noqa: PTH208 - names, in the order of bytes
            except (FileNotFoundError, NotADirectoryError):
                self._check_mounted()
                return ()
            for name in names:
                if name.startswith("."):
                    continue
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    mode = (folder / name).lstat().st_mode
                    if stat.S_ISLNK(mode):
                        self._path(f"{prefix}{name}")  # raises
                    found.append((name, mode))
        return tuple(found)

    def _check_mounted(self) -> None:
        """Raise Unavailable where the store itself is not there, or has nothing in it."""
        try:
            there = any(self._root.iterdir())
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise Unavailable(
                f"{self._root}: the model store cannot be read: {reason}; check the mount, or"
                " --model_store"
            ) from error
        if not there:
            raise Unavailable(
                f"{self._root}: the model store is empty; check the mount, or push a model"
            )

    @contextmanager
    def _errors(self, path: Path) -> Iterator[None]:
        """System errors in one line: whether the object is missing, the store, or a right."""
        try:
            yield
        except BatchPredictError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            self._check_mounted()
            raise Missing(f"{path}: there is no such object in the store") from error
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise Unavailable(
                f"{path}: {reason}; check the rights on the model store and its disk"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._root / _LOCK
        with _writing(path):
            self._root.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(path, flags, 0o666)
        try:
            with _writing(path):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _draft(self, key: str) -> Iterator[tuple[BinaryIO, Path]]:
        """A file beside the object; gone in the end unless it was given a name."""
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        with _writing(path):
            _remove_abandoned(path)
            file = _created(temporary)
            try:
                with file:
                    yield file, temporary
                for folder in path.parents[: key.count("/") + 1]:
                    _sync_folder(folder)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        if error.errno in _NOT_PERMITTED:
            raise Unavailable(f"{path}: {reason}; check the rights on the model store") from error
        raise OutputWriteFailed(
            f"{path}: cannot be written: {reason}; check the disk of the model store"
        ) from error


def _created(path: Path) -> BinaryIO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder that became empty may be removed in between, and so may a file without a lock.
        with contextlib.suppress(FileNotFoundError):
            file = path.open("xb")
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                return file
            file.close()


def _remove_abandoned(final: Path) -> None:
    """Remove drafts of `final` whose writers were killed: the kernel has released their locks."""
    start = f".{final.name}."
    if not final.parent.is_dir():
        return
    for part in final.parent.iterdir():
        if not (part.name.startswith(start) and part.name.endswith(".part")):
            continue
        gone_or_written = (FileNotFoundError, BlockingIOError, PermissionError)
        with contextlib.suppress(*gone_or_written), part.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)


def _make_durable(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders have no fsync here
            raise
    finally:
        os.close(descriptor)


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _entry(key: str, status: os.stat_result) -> Entry:
    etag = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
    return Entry(key, status.st_size, etag, status.st_mtime_ns)
