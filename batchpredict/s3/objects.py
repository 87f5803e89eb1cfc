"""The operations on objects that the tool needs, safe for several threads."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from batchpredict.errors import ConfigInvalid
from batchpredict.s3.addresses import Address, Stored
from batchpredict.s3.body import Body
from batchpredict.s3.calls import Calls
from batchpredict.s3.connection import Connection
from batchpredict.s3.crew import call_all
from batchpredict.s3.download import download
from batchpredict.s3.faults import Denied, Missing, Refused, Unexplained, Unsupported
from batchpredict.s3.multipart import PART, abort, integrity
from batchpredict.s3.upload import Upload, open_file, upload_parts

Watch = Callable[[int], None]


def _unwatched(count: int) -> None:
    pass


class S3:
    """Every method raises Unavailable when the store cannot be used, besides what it names."""

    def __init__(self, connection: Connection) -> None:
        self._calls = Calls(connection)
        self._conditional: dict[str, bool] = {}
        self._probing = threading.Lock()

    def head(self, address: Address) -> Stored:
        """Raises Missing."""
        try:
            answer = self._calls("head_object", address)
        except Unexplained:  # an answer to HEAD has no text
            self._calls("get_object", address, Range="bytes=0-0")["Body"].close()
            raise
        return _stored(address, answer, answer["ContentLength"])

    def read(self, address: Address, most: int) -> tuple[bytes, Stored]:
        """All of a small object. Raises Missing, and ConfigInvalid of more than `most` bytes."""
        answer = self._calls("get_object", address)
        stored = _stored(address, answer, answer["ContentLength"])
        with Body(self._get, stored, 0, stored.size, answer) as body:
            if stored.size > most:
                raise ConfigInvalid(f"{address.url}: has {stored.size} bytes, {most} at most")
            return b"".join(iter(lambda: body.take(most), b"")), stored

    def _get(self, address: Address, **parameters: Any) -> dict[str, Any]:
        return self._calls("get_object", address, **parameters)

    def check_bucket(self, address: Address) -> None:
        """Raises Missing where there is no bucket. Who may not list it may write all the same."""
        with contextlib.suppress(Denied):
            self._calls.of_bucket("list_objects_v2", address, Prefix=address.key, MaxKeys=1)

    def list(self, address: Address, *, directly: bool = False) -> Iterator[Stored]:
        """All objects whose keys begin with that of `address`, in the order of their keys.

        For a folder it has to end in "/", or `a` has the objects of `ab/`. `directly`: without
        those that have another "/".
        """
        level = {"Delimiter": "/"} if directly else {}
        for page in self._calls.pages("list_objects_v2", address, Prefix=address.key, **level):
            for entry in page.get("Contents", ()):
                yield _stored(Address(address.bucket, entry["Key"]), entry, entry["Size"])

    def folders(self, address: Address) -> Iterator[str]:
        """Names one level below a folder, without "/"."""
        prefix = address.key if address.key.endswith("/") or not address.key else address.key + "/"
        pages = self._calls.pages("list_objects_v2", address, Prefix=prefix, Delimiter="/")
        for page in pages:
            for entry in page.get("CommonPrefixes", ()):
                yield entry["Prefix"].removeprefix(prefix).rstrip("/")

    def write(
        self, address: Address, content: bytes, *, absent: bool = False, etag: str | None = None
    ) -> str:
        """The new ETag. Raises Refused if there is an object but should be none, or another one.

        Another writer at the same instant is Refused too, even if there is no object afterwards.
        """
        conditions = {"IfNoneMatch": "*"} if absent else {"IfMatch": etag} if etag else {}
        checks = integrity(self._calls, content)
        try:
            answer = self._calls("put_object", address, Body=content, **conditions, **checks)
        except Missing:
            if etag:
                raise Refused(f"{address.url}: was removed by another writer") from None
            raise
        except Refused as error:
            # The answer to an earlier attempt may have been lost on its way.
            if not error.repeated:
                raise
            return self._own(address, content, error)
        return str(answer["ETag"])

    def _own(self, address: Address, content: bytes, error: Refused) -> str:
        try:
            found, stored = self.read(address, len(content))
        except (Missing, ConfigInvalid):
            raise error from None
        if found != content:
            raise error
        return stored.etag

    def copy(self, address: Address, to: Address) -> None:
        """Have the store copy an object, of at most 5 GiB. Raises Missing, Unavailable."""
        source = {"Bucket": address.bucket, "Key": address.key}
        try:
            self._calls("copy_object", to, CopySource=source)
        except Missing:
            self.head(address)  # the answer does not say which of both is missing
            raise

    def remove(self, address: Address) -> None:
        """That there is none is fine."""
        try:
            self._calls("delete_object", address)
        except Missing:
            return

    def copy_all(self, pairs: Iterable[tuple[Address, Address]]) -> None:
        """`copy` from the first to the second of each, several at a time."""
        call_all(partial(self.copy, address, to) for address, to in pairs)

    def remove_all(self, addresses: Iterable[Address]) -> None:
        """`remove` each, several at a time."""
        call_all(partial(self.remove, address) for address in addresses)

    def is_conditional(self, folder: Address) -> bool:
        """Whether `write` can be refused here: a store may lack conditions, or ignore them.

        Asks once, with an object of its own in `folder`.
        """
        with self._probing:
            if folder.url not in self._conditional:
                self._conditional[folder.url] = self._probe(folder)
            return self._conditional[folder.url]

    def _probe(self, folder: Address) -> bool:
        prefix = folder.key if folder.key.endswith("/") or not folder.key else folder.key + "/"
        address = Address(folder.bucket, f"{prefix}.probe-{uuid.uuid4().hex}")
        try:
            first = self.write(address, b"1", absent=True)
        except Unsupported:
            return False
        try:
            if not self._is_refused(address, absent=True):
                return False
            second = self.write(address, b"2", etag=first)
            return second != first and self._is_refused(address, etag=first)
        except Unsupported:
            return False
        finally:
            with contextlib.suppress(Denied):  # who may write but not remove
                self.remove(address)

    def _is_refused(self, address: Address, **condition: Any) -> bool:
        try:
            self.write(address, b"3", **condition)
        except Refused:
            return True
        return False

    def open(self, stored: Stored, start: int = 0, end: int | None = None) -> Body:
        """Bytes `start` to `end`, not before they are read. Raises Changed while they are."""
        end = stored.size if end is None else min(end, stored.size)
        return Body(self._get, stored, start, end)

    def download(self, stored: Stored, path: Path, watch: Watch = _unwatched) -> str:
        """Hex sha256 of what is in `path` then; `watch` gets the bytes there since its last call.

        Continues what an earlier call left in `path`, and next to it as `path`.parts; that counts
        too. Raises Changed and OutputWriteFailed.
        """
        return download(self.open, stored, path, watch)

    def upload(
        self, path: Path, address: Address, watch: Watch = _unwatched, *, absent: bool = False
    ) -> str:
        """The ETag; visible when all is there. Raises Refused, InputMissing, InputInvalid."""
        file = open_file(path)
        try:
            size = os.fstat(file).st_size
            if size > PART:
                return upload_parts(self._calls, file, address, watch, absent)
            etag = self.write(address, os.pread(file, size, 0), absent=absent)
            watch(size)
            return etag
        finally:
            os.close(file)

    def begin(self, address: Address, noted: Callable[[str], None] | None = None) -> Upload:
        """A stream of a size that is not known. `noted` gets the id, once there is one."""
        return Upload(self._calls, address, self.write, noted or (lambda _: None))

    def abort_stale(self, address: Address, upload_id: str) -> None:
        """Free what a killed run left; that it is gone is fine."""
        abort(self._calls, address, upload_id)

    def close(self) -> None:
        """The connections; the next call opens new ones."""
        self._calls.close()


def _stored(address: Address, answer: dict[str, Any], size: int) -> Stored:
    modified = answer["LastModified"]
    return Stored(address, size, answer["ETag"], int(modified.timestamp()) * 10**9)
