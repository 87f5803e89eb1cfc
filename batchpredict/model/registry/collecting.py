"""What is pushed of a model: all files below a directory, or what one graph needs."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from batchpredict.errors import ConfigInvalid, TryAgain, Unavailable
from batchpredict.model.files import check_member
from batchpredict.model.package import ModelPackage, read_package
from batchpredict.model.registry.versions import MOST_FILES, StoredFile, unusable_paths

_HASH_BYTES = 1 << 20
_Signature = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Collected:
    """Files to push, sorted by path. `hidden`: what was left out, relative to `directory`.

    `package`: the model they are, for the check that it loads.
    """

    package: ModelPackage
    directory: Path
    files: tuple[StoredFile, ...]
    hidden: tuple[str, ...]
    signatures: dict[str, _Signature]

    def path(self, file: StoredFile) -> Path:
        return self.directory / file.path

    def check_unchanged(self, file: StoredFile) -> None:
        """Raises TryAgain where the file is not the one that was hashed."""
        if _signature(self.path(file)) != self.signatures[file.path]:
            raise TryAgain(
                f"{self.path(file)}: has changed while it was pushed; push again when nothing"
                " writes it"
            )

    def modified_ns(self, file: StoredFile) -> int:
        return self.signatures[file.path][3]


def collect(source: str | Path, watch: Callable[[int], None] = lambda _: None) -> Collected:
    """A directory with all regular files below it, or an .onnx file with what it needs.

    Each file is hashed once; `watch` is told of bytes hashed that the model itself does not read.
    Raises what `read_package` does, ConfigInvalid (a link out of the directory, what is no file,
    a name that cannot be stored) and TryAgain (changed meanwhile).
    """
    # Before anything is hashed: what changes from now on is noticed.
    path = Path(os.path.expanduser(source))  # noqa: PTH111 - pathlib's raises for unknown users
    everything: list[str] = []
    hidden: list[str] = []
    signatures: dict[str, _Signature] = {}
    if path.is_dir():
        directory = path.resolve()
        everything, hidden = _walked(directory)
        signatures = {name: _signature(directory / name) for name in everything}
        package = read_package(path)
    else:
        begun = time.time_ns()
        package = read_package(path)
        directory = package.directory
        everything = [name for name, _, _ in package.files]
        signatures = {name: _signature(directory / name) for name in everything}
        # Which files there are was known only now; one that has just changed is hashed again.
        if any(changed >= begun for *_, changed in signatures.values()):
            package = read_package(path)
    known = {name: StoredFile(name, size, sha256) for name, size, sha256 in package.files}
    if reason := unusable_paths(everything):
        raise ConfigInvalid(f"{path}: {reason}; rename it")
    files = [known.get(name) or _hashed(directory, name, watch) for name in sorted(everything)]
    if missing := known.keys() - set(everything):
        raise ConfigInvalid(
            f"{directory / min(missing)}: belongs to the model and is hidden; rename it"
        )
    collected = Collected(package, directory, tuple(files), tuple(hidden), signatures)
    for file in collected.files:
        collected.check_unchanged(file)
        if file.size != signatures[file.path][2]:
            raise TryAgain(f"{collected.path(file)}: is being written; push again when it is done")
    return collected


def _walked(directory: Path) -> tuple[list[str], list[str]]:
    """Relative names of the files below, and of what is hidden, sorted. Raises ConfigInvalid."""
    files: list[str] = []
    hidden: list[str] = []
    for name, is_folder in _names(directory, ""):
        if name.rpartition("/")[2].startswith("."):
            hidden.append(name)
        elif not is_folder:
            check_member(directory, name, None)
            files.append(name)
            if len(files) > MOST_FILES:
                raise ConfigInvalid(
                    f"{directory}: has more than {MOST_FILES:,} files; push the model's alone"
                )
    return sorted(files), sorted(hidden)


def _names(directory: Path, prefix: str) -> Iterator[tuple[str, bool]]:
    try:
        with os.scandir(directory / prefix) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise Unavailable(f"{directory / prefix}: {reason}; check its rights") from error
    for name, is_folder in found:
        yield f"{prefix}{name}", is_folder
        if is_folder and not name.startswith("."):
            yield from _names(directory, f"{prefix}{name}/")


def _hashed(directory: Path, name: str, watch: Callable[[int], None]) -> StoredFile:
    digest = hashlib.sha256()
    size = 0
    try:
        with (directory / name).open("rb") as file:
            while data := file.read(_HASH_BYTES):
                digest.update(data)
                size += len(data)
                watch(len(data))
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise Unavailable(f"{directory / name}: {reason}; check its rights") from error
    return StoredFile(name, size, digest.hexdigest())


def _signature(path: Path) -> _Signature:
    try:
        status = path.stat()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise Unavailable(f"{path}: {reason}; push again when nothing writes it") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
