"""The model directory of a variant: written aside, renamed when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from batchpredict.data.storage import reason
from batchpredict.errors import ConfigInvalid, OutputNotCreatable, OutputWriteFailed, TryAgain
from batchpredict.model.manifest import FILE_NAME, MadeFrom, read_manifest
from batchpredict.model.package import ModelPackage

GRAPH = "model.onnx"
_TABLE = "[made_from]"


@dataclass(frozen=True)
class Draft:
    """A directory that nobody else writes to. `path`: it, as long as it is not published.

    `descriptor`: holds the lock on it; whoever has a copy of it keeps others out.
    """

    path: Path
    target: Path
    descriptor: int

    @property
    def work(self) -> Path:
        """A folder for files on the way; not published."""
        return self.path / "work"

    def publish(self) -> None:
        """Give it its name. Raises OutputNotCreatable (taken meanwhile), OutputWriteFailed."""
        try:
            shutil.rmtree(self.work)
            for file in self.path.iterdir():
                _sync(file)
            _sync(self.path)
            check_free(self.target)
            self.path.rename(self.target)
            _sync(self.target.parent)
        except OSError as error:
            raise OutputWriteFailed(f"{self.target}: cannot be written: {reason(error)}") from error


def check_free(target: Path) -> None:
    """Raises OutputNotCreatable where something has this name."""
    if os.path.lexists(target):
        raise OutputNotCreatable(
            f"{target}: is there already; remove it or choose another directory with -o"
        )


@contextmanager
def draft_of(target: Path) -> Iterator[Draft]:
    """An empty directory beside `target`, removed at the end unless it was published.

    Raises OutputNotCreatable, TryAgain (another process makes the same one).
    """
    check_free(target)
    path = target.with_name(f".{target.name}.part")
    try:
        descriptor = _locked(path, target)
    except OSError as error:
        raise OutputNotCreatable(
            f"{target}: cannot be created: {reason(error)}; choose another directory with -o"
        ) from error
    try:
        check_free(target)
        _clear(path)  # of a process that was killed: the lock is ours
        (path / "work").mkdir()
        yield Draft(path, target, descriptor)
    finally:
        if _is_named(path, descriptor):
            shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _locked(path: Path, target: Path) -> int:
    """A descriptor of the directory that has this name now, locked."""
    while True:
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        with contextlib.suppress(FileNotFoundError):  # published or removed just now
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_named(path, descriptor):
                    return os.dup(descriptor)
            except BlockingIOError:
                raise TryAgain(
                    f"{target}: another process makes it just now; try again when it has ended"
                ) from None
            finally:
                os.close(descriptor)


def _is_named(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _clear(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_companions(package: ModelPackage, directory: Path) -> None:
    """What shapes predictions beside the graph, the manifest apart. Raises OutputWriteFailed."""
    kept = {package.graph, FILE_NAME}
    folder = Path(package.graph).parent
    kept |= {(folder / location).as_posix() for location in package.graph_file.external}
    try:
        for name, _, _ in package.files:
            if name not in kept:
                shutil.copyfile(package.directory / name, directory / name)
    except OSError as error:
        raise OutputWriteFailed(f"{directory}: cannot be written: {reason(error)}") from error


def write_manifest(package: ModelPackage, directory: Path, made_from: MadeFrom) -> None:
    """The package's own with `made_from` in it; its text and comments stay.

    Raises ConfigInvalid where the manifest has a [made_from] that cannot be told from the rest.
    """
    path = directory / FILE_NAME
    own = package.directory / FILE_NAME
    try:
        text = _without_table(own.read_text("utf-8")) if own.is_file() else ""
        parts = [text] if text else []
        path.write_text("\n\n".join([*parts, _table(made_from)]), "utf-8")
    except OSError as error:
        raise OutputWriteFailed(f"{path}: cannot be written: {reason(error)}") from error
    try:
        whole = read_manifest(path) == replace(package.manifest, made_from=made_from)
    except ConfigInvalid:
        whole = False
    if not whole:
        raise ConfigInvalid(
            f"{own}: its {_TABLE} cannot be replaced; make it the last table of the file, or remove"
            " it"
        )


def _without_table(text: str) -> str:
    """Without [made_from], which goes up to the next table."""
    lines = text.split("\n")
    start = next((at for at, line in enumerate(lines) if line.strip() == _TABLE), len(lines))
    after = (at for at, line in enumerate(lines) if at > start and line.startswith("["))
    return "\n".join([*lines[:start], *lines[next(after, len(lines)) :]]).rstrip("\n")


def _table(made_from: MadeFrom) -> str:
    entries = [
        f"{key} = {_spelled(value)}\n"
        for key, value in asdict(made_from).items()
        if value is not None
    ]
    return f"{_TABLE}\n{''.join(entries)}"


def _spelled(value: str | float) -> str:
    if not isinstance(value, str):
        return repr(value)
    # TOML's basic strings are JSON's, but for DEL, which JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
