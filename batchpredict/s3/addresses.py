"""Names of objects, `s3://bucket/key`, and what a store says about one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from batchpredict.errors import UsageError

SCHEME = "s3://"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_MOST_KEY = 1024  # bytes; S3's limit


@dataclass(frozen=True)
class Address:
    """An object, or with an empty key or one that ends in "/" all objects below it."""

    bucket: str
    key: str

    @property
    def url(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"


@dataclass(frozen=True)
class Stored:
    """An object at one moment; `etag` is opaque and names its content in `address`."""

    address: Address
    size: int
    etag: str
    modified_ns: int


def is_url(name: str) -> bool:
    return name.startswith(SCHEME)


def split(url: str) -> Address:
    """The bucket may be empty (`s3:///key`). Raises UsageError."""
    if not is_url(url):
        raise UsageError(f"{url}: is not of the form s3://BUCKET/KEY")
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    if bucket and not _BUCKET.fullmatch(bucket):
        # Not shown: some write credentials there.
        raise UsageError("s3://…: what follows is not the name of a bucket; give s3://BUCKET/KEY")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{url}: is not UTF-8, as names in S3 are") from None
    if size > _MOST_KEY:
        raise UsageError(f"{url}: the name has {size} bytes, and S3 allows {_MOST_KEY}")
    return Address(bucket, key)
