"""Stores that speak the S3 API; the only importer of boto3, not before the first call."""

from batchpredict.s3.addresses import Address, Stored, is_url
from batchpredict.s3.body import Body
from batchpredict.s3.download import sidecar
from batchpredict.s3.faults import Changed, Denied, Missing, Refused, Unreachable
from batchpredict.s3.objects import S3
from batchpredict.s3.process import bound_bucket, connect_to, endpoint, parse, store
from batchpredict.s3.upload import Upload

__all__ = [
    "S3",
    "Address",
    "Body",
    "Changed",
    "Denied",
    "Missing",
    "Refused",
    "Stored",
    "Unreachable",
    "Upload",
    "bound_bucket",
    "connect_to",
    "endpoint",
    "is_url",
    "parse",
    "sidecar",
    "store",
]
