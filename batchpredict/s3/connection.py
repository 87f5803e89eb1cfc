"""Which object store this process talks to, and the client that does."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from batchpredict import cloudfoundry
from batchpredict.errors import ConfigInvalid
from batchpredict.job import check_endpoint

CONNECT_TIMEOUT = 10
READ_TIMEOUT = 30
_ATTEMPTS = 5
_CONNECTIONS = 32
_OWN_ENDPOINT = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_OWN_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE")


@dataclass(frozen=True)
class Connection:
    """`binding` is Cloud Foundry's, None where boto3 finds the credentials itself. `named`: it was
    chosen, so that nothing of the environment belongs to it.
    """

    endpoint_url: str | None = None
    binding: cloudfoundry.Binding | None = field(default=None, repr=False)
    named: bool = False


def settle(endpoint_url: str | None, service: str | None) -> Connection:
    """Raises UsageError and ConfigInvalid. A service that is named wins over the environment."""
    own = not service and any(os.environ.get(name) for name in _OWN_CREDENTIALS)
    binding = None if own else cloudfoundry.binding(service)
    if endpoint_url:
        check_endpoint(endpoint_url)
    return Connection(endpoint_url or None, binding, bool(service))


def is_aws(endpoint_url: str) -> bool:
    host = urlsplit(endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def without_credentials(url: str) -> str:
    """Which some write into URLs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def client(connection: Connection) -> Any:
    """Raises botocore's errors, and ValueError of an endpoint that is no URL."""
    import boto3
    import botocore.session

    binding = connection.binding
    secrets: dict[str, str] = {}
    if binding:
        secrets["aws_access_key_id"] = binding.access_key_id
        secrets["aws_secret_access_key"] = binding.secret_access_key
    region = binding.region if binding else None
    # Without AWS_PROFILE, whose files need not be there.
    plain = {"profile": (None, None, None, None)} if connection.named else None
    core = botocore.session.Session(session_vars=plain)
    session = boto3.Session(region_name=region or None, botocore_session=core, **secrets)
    endpoint = endpoint_of(connection)
    ignored = connection.named and endpoint is None
    made = session.client("s3", endpoint_url=endpoint, config=_config(endpoint, ignored=ignored))
    if endpoint is None and not is_aws(made.meta.endpoint_url):  # a configuration file names it
        endpoint = made.meta.endpoint_url
        made.close()
        made = session.client("s3", endpoint_url=endpoint, config=_config(endpoint))
    return made


def endpoint_of(connection: Connection) -> str | None:
    """Of a store that is not AWS's own; None where boto3 finds out. May have credentials.

    Raises ConfigInvalid.
    """
    try:
        own = None if connection.named else _from_environment()
        url = connection.endpoint_url or own or _from_binding(connection.binding)
        _ = urlsplit(url or "").port
    except ValueError:
        raise ConfigInvalid("the endpoint of the object store is not a URL") from None
    return url


def _from_environment() -> str | None:
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    return next((url for name in _OWN_ENDPOINT if (url := os.environ.get(name))), None)


def _from_binding(binding: cloudfoundry.Binding | None) -> str | None:
    """None for AWS: there boto3 knows a better name than the binding, from the region."""
    if not binding or not binding.host:
        return None
    url = binding.host if "://" in binding.host else f"https://{binding.host}"
    return None if binding.region and is_aws(url) else url


def _config(endpoint: str | None, *, ignored: bool = False) -> Any:
    """`ignored`: endpoints that the environment or a file names."""
    from botocore.config import Config

    settings: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
        "tcp_keepalive": True,
        "max_pool_connections": _CONNECTIONS,
        "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
    }
    if ignored:
        settings["ignore_configured_endpoint_urls"] = True
    if endpoint and not is_aws(endpoint):
        # Names of buckets in the host name, and checksums as trailers, are AWS's own.
        settings["s3"] = {"addressing_style": "path"}
        settings["request_checksum_calculation"] = "when_required"
        settings["response_checksum_validation"] = "when_required"
    return Config(**settings)
