"""A store in a bucket."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from batchpredict import s3
from batchpredict.model.registry.objects import Entry, Watch
from batchpredict.s3 import Address, Missing, Refused, Stored

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 20


class BucketObjects:
    """Objects below a prefix of a bucket.

    Conditional writes are probed before the first one. Where the server lacks or ignores them,
    an object is read before it is written and again after: whoever was overwritten within these
    milliseconds is told so, but only one writer at a time is safe.
    """

    def __init__(self, url: str) -> None:
        address = s3.parse(url)
        key = address.key if not address.key or address.key.endswith("/") else f"{address.key}/"
        self._root = Address(address.bucket, key)
        self._conditional: bool | None = None
        self.url = self._root.url
        self.identity = f"{s3.endpoint() or ''} {self.url}"

    def _at(self, key: str) -> Address:
        return Address(self._root.bucket, self._root.key + key)

    def _entry(self, stored: Stored) -> Entry:
        key = stored.address.key.removeprefix(self._root.key)
        return Entry(key, stored.size, stored.etag, stored.modified_ns)

    def _stored(self, entry: Entry) -> Stored:
        return Stored(self._at(entry.key), entry.size, entry.etag, entry.modified_ns)

    def prepare(self) -> None:
        self._is_conditional()

    def read(self, key: str, most: int) -> tuple[bytes, str]:
        content, stored = s3.store().read(self._at(key), most)
        return content, stored.etag

    def entry(self, key: str) -> Entry:
        return self._entry(s3.store().head(self._at(key)))

    def list(self, prefix: str) -> Iterator[Entry]:
        return map(self._entry, s3.store().list(self._at(prefix)))

    def folders(self, prefix: str) -> Iterator[str]:
        return s3.store().folders(self._at(prefix))

    def create(self, key: str, content: bytes) -> None:
        if self._is_conditional():
            s3.store().write(self._at(key), content, absent=True)
            return
        try:
            self.entry(key)
        except Missing:
            self._write_and_look(key, content)
        else:
            raise Refused(f"{self._at(key).url}: is there already")

    def replace(self, key: str, content: bytes, etag: str) -> None:
        if self._is_conditional():
            s3.store().write(self._at(key), content, etag=etag)
            return
        if self.entry(key).etag != etag:
            raise Refused(f"{self._at(key).url}: has changed")
        self._write_and_look(key, content)

    def _write_and_look(self, key: str, content: bytes) -> None:
        s3.store().write(self._at(key), content)
        if self.read(key, len(content) + (1 << 20))[0] != content:
            raise Refused(f"{self._at(key).url}: was written by somebody else at the same time")

    def _is_conditional(self) -> bool:
        if self._conditional is None:
            self._conditional = s3.store().is_conditional(self._root)
            if not self._conditional:
                logger.warning(
                    "%s: its server does not honour conditional writes; let only one process at"
                    " a time push, promote, roll back or remove",
                    self.url,
                )
        return self._conditional

    def remove(self, key: str) -> None:
        s3.store().remove(self._at(key))

    def fetch(self, entry: Entry, path: Path, watch: Watch) -> str:
        return s3.store().download(self._stored(entry), path, watch)

    def upload(self, path: Path, key: str, watch: Watch) -> None:
        s3.store().upload(path, self._at(key), watch)

    def chunks(self, entry: Entry) -> Iterator[bytes]:
        with s3.store().open(self._stored(entry)) as body:
            while data := body.read(_READ_BYTES):
                yield data
