"""An upload in parts, which nobody sees before it is complete."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from batchpredict.s3.addresses import Address
from batchpredict.s3.calls import Calls
from batchpredict.s3.faults import Missing, Refused

PART = 16 << 20
MOST_PARTS = 10_000  # S3's limit


def integrity(calls: Calls, content: bytes | bytearray) -> dict[str, str]:
    """Parameters by which the store refuses what is not `content`."""
    if not calls.checks_md5:
        return {}
    digest = hashlib.md5(content, usedforsecurity=False).digest()
    return {"ContentMD5": base64.b64encode(digest).decode()}


class Multipart:
    """Parts may come in any order and from several threads."""

    def __init__(self, calls: Calls, address: Address) -> None:
        self._calls = calls
        self.address = address
        self.id: str = calls("create_multipart_upload", address)["UploadId"]
        self._etags: dict[int, str] = {}

    def put(self, number: int, content: bytes | bytearray) -> None:
        """Part `number`, from 1."""
        etag = self._calls(
            "upload_part",
            self.address,
            UploadId=self.id,
            PartNumber=number,
            Body=content,
            **integrity(self._calls, content),
        )["ETag"]
        self._etags[number] = etag

    def complete(self, absent: bool) -> str:
        """The new ETag. Raises Refused if there is an object and `absent` was asked for."""
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if absent else {}
        parts = [{"PartNumber": n, "ETag": etag} for n, etag in sorted(self._etags.items())]
        try:
            answer = self._calls(
                "complete_multipart_upload",
                self.address,
                UploadId=self.id,
                MultipartUpload={"Parts": parts},
                **condition,
            )
        except (Missing, Refused) as error:
            # The answer to an earlier attempt may have been lost on its way.
            etag = self._stored() if error.repeated else None
            if etag is None:
                raise
            return etag
        return str(answer["ETag"])

    def _stored(self) -> str | None:
        """The ETag if what is there can only be ours: it is made of those of the parts."""
        try:
            found = str(self._calls("head_object", self.address)["ETag"])
            joined = b"".join(bytes.fromhex(e.strip('"')) for _, e in sorted(self._etags.items()))
        except (Missing, ValueError):
            return None
        ours = hashlib.md5(joined, usedforsecurity=False).hexdigest()
        return found if found.strip('"') == f"{ours}-{len(self._etags)}" else None

    def abort(self) -> None:
        abort(self._calls, self.address, self.id)


def abort(calls: Calls, address: Address, upload_id: str) -> None:
    """Free the parts; that there are none any more is fine. Raises Unavailable."""
    try:
        calls("abort_multipart_upload", address, UploadId=upload_id)
    except Missing:
        return
