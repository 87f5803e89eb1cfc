"""What the name of an input or output stands for: a stream, a compression."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from batchpredict import s3

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STDIO = "-"
# What undoes and what makes each compression. No time and no name in a gzip header, so that
# equal content gives equal bytes.
DECOMPRESS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": zstd.ZstdFile,
}
COMPRESS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile("", "wb", 6, raw, mtime=0),
    ".bz2": lambda raw: bz2.BZ2File(raw, "wb"),
    ".xz": lambda raw: lzma.LZMAFile(raw, "wb", preset=3),  # noqa: SIM115 - Draft.finish closes it
    ".zst": lambda raw: zstd.ZstdFile(raw, "wb"),
}
# OSError is how bz2 reports damage, too; those of the system are InputMissing by then.
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, OSError)


def compression_of(name: str) -> str:
    """The compression suffix a file name ends in (".gz", ".bz2", ".xz", ".zst"), or ""."""
    lower = name.lower()
    if not any(known in lower for known in DECOMPRESS):  # a path takes ten times as long
        return ""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in DECOMPRESS else ""


def is_stream(name: str) -> bool:
    """Standard output, a device or a pipe: written directly, and nothing lies beside it."""
    if s3.is_url(name):
        return False
    try:
        mode = 0 if name == STDIO else os.stat(name).st_mode  # noqa: PTH116
    except OSError:
        return False
    return name == STDIO or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def identity(name: str) -> str:
    """What all names of one file or object have in common."""
    return s3.parse(name).url if s3.is_url(name) else os.path.realpath(name)


class Identities:
    """`identity` of many names: what a directory is, is looked up once."""

    def __init__(self) -> None:
        self._directories: dict[str, str] = {}

    def of(self, name: str) -> str:
        """As `identity`."""
        directory, last = os.path.split(name)
        if s3.is_url(name) or last in ("", ".", ".."):
            return identity(name)
        if directory not in self._directories:
            self._directories[directory] = os.path.realpath(directory)
        # A Path takes ten times as long, and of 10,000 inputs there are 80,000 names.
        found = os.path.join(self._directories[directory], last)  # noqa: PTH118
        return identity(name) if os.path.islink(found) else found  # noqa: PTH114
