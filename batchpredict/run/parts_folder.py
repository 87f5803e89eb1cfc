"""An output that is left in parts: a folder of complete files and a manifest, published at once.

`out.csv/` has `part-00000.csv` and so on, in the order of the rows, and `_manifest.json`, a name
that readers of folders (pyarrow, Spark, DuckDB) overlook:

    {"manifest": 1, "format": "csv", "rows": 3000, "parts": [
      {"path": "part-00000.csv", "rows": 300, "size": 8190, "sha256": "…"}, …]}

A folder of files is there with one rename, right after the one that it replaces was moved away.
Objects in S3 have no such: there the manifest is removed first and comes last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from batchpredict import s3
from batchpredict.data.drafts import Published, not_creatable, write_durably, write_failed
from batchpredict.data.locations import compression_of
from batchpredict.data.naming import MANIFEST
from batchpredict.data.outputs import Publishable, write_small
from batchpredict.errors import OutputNotCreatable
from batchpredict.run.done import manifest_of
from batchpredict.run.parts import ScoredPart


def check_replaceable(output: str) -> None:
    """Raise OutputNotCreatable where something else has the folder's name."""
    if not s3.is_url(output) and os.path.lexists(output) and not Path(manifest_of(output)).exists():
        raise OutputNotCreatable(
            f"{output}: is there, and no folder that --output_parts has made; remove it, or choose "
            "another place with --output_file or --output_dir"
        )


def parts_folder(output: str, parts: Sequence[ScoredPart], suffix: str) -> Publishable:
    """To be finished and published. `suffix`: of the format, with its dot."""
    names = [f"part-{n:05d}{suffix}{compression_of(output)}" for n in range(len(parts))]
    files = {name: part.task.output for name, part in zip(names, parts, strict=True)}
    manifest = _manifest(parts, names, suffix)
    kind: Callable[..., Publishable] = _Objects if s3.is_url(output) else _Folder
    return kind(output, files, manifest)


def _manifest(parts: Sequence[ScoredPart], names: Sequence[str], suffix: str) -> bytes:
    listed: list[dict[str, Any]] = []
    for part, name in zip(parts, names, strict=True):
        counts, output = part.receipt["counts"], part.receipt["output"]
        rows = counts["scored"] + counts["nulls"]
        listed.append(
            {"path": name, "rows": rows, "size": output["size"], "sha256": output["sha256"]}
        )
    rows = sum(entry["rows"] for entry in listed)
    content = {"manifest": 1, "format": suffix.removeprefix("."), "rows": rows, "parts": listed}
    return json.dumps(content, indent=1).encode() + b"\n"


def _published(output: str, manifest: bytes) -> Published:
    return Published(manifest_of(output), len(manifest), hashlib.sha256(manifest).hexdigest())


class _Folder:
    """A directory beside its final name. Its files are those of the parts, by a second name.

    Raises OutputNotCreatable, OutputWriteFailed.
    """

    def __init__(self, output: str, files: dict[str, str], manifest: bytes) -> None:
        self._output, self._files, self._manifest = output, files, manifest
        self._final = Path(os.path.realpath(output))
        # Fixed names: whoever has the output's lock removes what a killed run has left.
        self._made = self._final.with_name(f".{self._final.name}.folder")
        self._old = self._final.with_name(f".{self._final.name}.old")

    def finish(self) -> Published:
        """Make the directory, durable."""
        try:
            self.abandon()
            self._made.mkdir(0o700)
            for name, part in self._files.items():
                _link(part, self._made / name)
        except OSError as error:
            raise not_creatable(self._output, error, "--output_file or --output_dir") from error
        write_durably(self._made / MANIFEST, self._manifest)
        return _published(self._output, self._manifest)

    def publish(self, name: str | None = None) -> Published:
        """Give it its name."""
        assert name is None
        try:
            self._replace()
            modified_ns = (self._final / MANIFEST).stat().st_mtime_ns
        except OSError as error:
            raise write_failed(self._output, error) from error
        shutil.rmtree(self._old, ignore_errors=True)
        return replace(_published(self._output, self._manifest), modified_ns=modified_ns)

    def _replace(self) -> None:
        """An older one hands its permissions on. Raises OSError; `abandon` brings that one back."""
        if self._final.exists():
            shutil.copymode(self._final, self._made)
            self._final.rename(self._old)
        else:
            self._made.chmod(0o777 & ~_umask())
        self._made.rename(self._final)

    def abandon(self) -> None:
        """Leave nothing behind but the older output, wherever a killed run has left it."""
        if not self._final.exists():
            with contextlib.suppress(OSError):
                self._old.rename(self._final)
        for directory in (self._made, self._old):
            shutil.rmtree(directory, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _link(part: str, name: Path) -> None:
    """Give a file a second name; a copy, where the file system has no such names."""
    try:
        name.hardlink_to(part)
    except PermissionError:
        shutil.copyfile(part, name)


class _Objects:
    """Objects below a folder's name, copied by the store. Raises Unavailable, OutputWriteFailed."""

    def __init__(self, output: str, files: dict[str, str], manifest: bytes) -> None:
        self._output, self._files, self._manifest = output, files, manifest

    def finish(self) -> Published:
        """Nothing: what is copied is visible."""
        return _published(self._output, self._manifest)

    def publish(self, name: str | None = None) -> Published:
        """Copy the parts, remove those of an older output, then say that they are complete."""
        assert name is None
        store, folder = s3.store(), s3.parse(f"{self._output}/")
        store.remove(s3.parse(manifest_of(self._output)))
        store.copy_all(
            (s3.parse(part), s3.parse(f"{self._output}/{file}"))
            for file, part in self._files.items()
        )
        store.remove_all(
            stored.address
            for stored in store.list(s3.parse(f"{self._output}/part-"), directly=True)
            if stored.address.key.removeprefix(folder.key) not in self._files
        )
        write_small(manifest_of(self._output), self._manifest)
        etag = store.head(s3.parse(manifest_of(self._output))).etag
        return replace(_published(self._output, self._manifest), etag=etag)

    def abandon(self) -> None:
        """Leave what was copied: without a manifest it is nothing, and the next run replaces it."""
