"""Where a store keeps its objects: a bucket or a folder, by the same few operations.

Keys are relative to the store, POSIX, without "." and ".."; prefixes end in "/". Nothing is seen
before it is complete. Every error is Unavailable (not reachable, not permitted), its subclasses
Missing and Refused, ConfigInvalid or OutputWriteFailed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Watch = Callable[[int], None]


@dataclass(frozen=True)
class Entry:
    """An object. `etag`: changes with its content. `modified_ns`: since the epoch."""

    key: str
    size: int
    etag: str
    modified_ns: int


class Objects(Protocol):
    """`url`: of the store, as people write it. `identity`: tells it from every other store."""

    url: str
    identity: str

    def prepare(self) -> None:
        """To be called before the first change; makes a store where there is none."""

    def read(self, key: str, most: int) -> tuple[bytes, str]:
        """Content and etag. Raises Missing; ConfigInvalid where it has more than `most` bytes."""

    def entry(self, key: str) -> Entry:
        """Raises Missing."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Every object below, at any depth."""

    def folders(self, prefix: str) -> Iterator[str]:
        """Names one level below that have objects below them."""

    def create(self, key: str, content: bytes) -> None:
        """Write a small object. Raises Refused where there is one."""

    def replace(self, key: str, content: bytes, etag: str) -> None:
        """Raises Refused where it has changed since, or has gone."""

    def remove(self, key: str) -> None:
        """One that is missing is fine."""

    def fetch(self, entry: Entry, path: Path, watch: Watch) -> str:
        """Write it to `path`, which an earlier call may have begun; its sha256.

        `watch` is told how many bytes came.
        """

    def upload(self, path: Path, key: str, watch: Watch) -> None:
        """Write a file of any size, in place of what is there."""

    def chunks(self, entry: Entry) -> Iterator[bytes]:
        """The content."""
