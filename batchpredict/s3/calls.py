"""One operation of the S3 API at a time, its errors made ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from batchpredict.errors import ConfigInvalid
from batchpredict.s3.addresses import Address
from batchpredict.s3.connection import Connection, client, is_aws, without_credentials
from batchpredict.s3.faults import explained, not_a_store

_PAGE = 1000  # S3's limit

_HEAD = ("ETag", "LastModified", "ContentLength")
# botocore finds nothing wrong with a web page that answers 200.
_ESSENTIAL = {
    "complete_multipart_upload": ("ETag",),
    "create_multipart_upload": ("UploadId",),
    "get_object": _HEAD,
    "head_object": _HEAD,
    "list_objects_v2": ("IsTruncated",),
    "put_object": ("ETag",),
    "upload_part": ("ETag",),
}


def _require(answer: dict[str, Any], names: tuple[str, ...], address: Address) -> None:
    if any(name not in answer for name in names):
        raise not_a_store(address.url)


class Calls:
    """Safe for threads; no network and no boto3 before the first call."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._client: Any = None

    def __call__(self, operation: str, address: Address, **parameters: Any) -> dict[str, Any]:
        """With the key of `address`. Raises Missing, Refused, Unsupported, Unavailable."""
        return self._made(operation, address, {"Key": address.key, **parameters})

    def of_bucket(self, operation: str, address: Address, **parameters: Any) -> dict[str, Any]:
        """Without the key, which is for messages only."""
        return self._made(operation, address, parameters)

    def _made(self, operation: str, address: Address, parameters: Any) -> dict[str, Any]:
        try:
            made: dict[str, Any] = getattr(self._connected(), operation)(
                Bucket=address.bucket, **parameters
            )
        except Exception as error:
            ours = explained(error, address.url, self._endpoint)
            if ours is error:
                raise
            raise ours from None
        _require(made, _ESSENTIAL.get(operation, ()), address)
        return made

    def pages(self, operation: str, address: Address, **parameters: Any) -> Iterator[Any]:
        try:
            paginator = self._connected().get_paginator(operation)
            pages = paginator.paginate(
                Bucket=address.bucket, PaginationConfig={"PageSize": _PAGE}, **parameters
            )
            for page in pages:
                _require(page, _ESSENTIAL[operation], address)
                yield page
        except Exception as error:
            ours = explained(error, address.url, self._endpoint)
            if ours is error:
                raise
            raise ours from None

    @property
    def _endpoint(self) -> str:
        return without_credentials(self._client.meta.endpoint_url) if self._client else ""

    @property
    def checks_md5(self) -> bool:
        """AWS gets boto3's own checksums. Others may not even check the signed SHA-256."""
        try:
            return not is_aws(self._connected().meta.endpoint_url)
        except Exception as error:
            ours = explained(error, "s3://")
            if ours is error:
                raise
            raise ours from None

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                try:
                    self._client = client(self._connection)
                except ValueError as error:
                    if type(error) is not ValueError:  # botocore's own, of the region
                        raise
                    raise ConfigInvalid(
                        "the endpoint of the object store is not a http:// or https:// URL"
                    ) from None
            return self._client

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None
