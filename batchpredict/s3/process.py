"""The one object store that a process talks to."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from batchpredict.errors import UsageError
from batchpredict.s3.addresses import Address, split
from batchpredict.s3.connection import Connection, endpoint_of, settle, without_credentials
from batchpredict.s3.objects import S3


@dataclass
class _Process:
    endpoint_url: str | None = None
    service: str | None = None
    connection: Connection | None = None
    store: S3 | None = None


_process = _Process()
_lock = threading.RLock()


def connect_to(endpoint_url: str | None, service: str | None) -> None:
    """Which store, None for what the environment says; asks nobody yet."""
    with _lock:
        if _process.store:
            _process.store.close()
        _process.endpoint_url, _process.service = endpoint_url, service
        _process.connection = _process.store = None


def _connection() -> Connection:
    with _lock:
        if _process.connection is None:
            _process.connection = settle(_process.endpoint_url, _process.service)
        return _process.connection


def store() -> S3:
    """Raises UsageError and ConfigInvalid of --endpoint_url, --service and VCAP_SERVICES."""
    with _lock:
        if _process.store is None:
            _process.store = S3(_connection())
        return _process.store


def endpoint() -> str | None:
    """The URL of a store that is not AWS's own, which tells equal names of buckets apart."""
    url = endpoint_of(_connection())
    return without_credentials(url) if url else None


def bound_bucket() -> str | None:
    """The bucket that Cloud Foundry has bound."""
    binding = _connection().binding
    return binding.bucket if binding else None


def parse(url: str) -> Address:
    """`s3:///key` is in the bucket that Cloud Foundry has bound. Raises UsageError."""
    address = split(url)
    if address.bucket:
        return address
    binding = _connection().binding
    if not binding:
        raise UsageError(f"{url}: names no bucket, and no object store is bound; give s3://BUCKET/")
    return Address(binding.bucket, address.key)
