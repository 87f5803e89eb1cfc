"""The object store that Cloud Foundry binds to the application, from VCAP_SERVICES."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from batchpredict.errors import ConfigInvalid, UsageError

_VARIABLE = "VCAP_SERVICES"
_LABEL = "objectstore"
_REQUIRED = ("access_key_id", "secret_access_key", "bucket")


@dataclass(frozen=True)
class Binding:
    """A bucket and the right to it; `region` and `host` may be empty."""

    name: str
    bucket: str
    region: str
    host: str
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)


def binding(service: str | None) -> Binding | None:
    """The instance named `service`, of any label, or the only one labelled objectstore.

    None where nothing is bound. Raises UsageError (not one of that name, or several and none
    named) and ConfigInvalid (not as Cloud Foundry writes it), without any of the content.
    """
    text = os.environ.get(_VARIABLE)
    if not text:
        if service:
            raise UsageError(f"--service {service}: {_VARIABLE} is not set")
        return None
    found = _instances(text)
    if service:
        found = [(label, one) for label, one in found if one.get("name") == service]
        if not found:
            raise UsageError(f"--service {service}: {_VARIABLE} has no service of that name")
    else:
        found = [(label, one) for label, one in found if label == _LABEL]
    if len(found) > 1:
        names = ", ".join(sorted(str(one.get("name")) for _, one in found))
        raise UsageError(f"{_VARIABLE} has several object stores: name one, --service of {names}")
    return _binding(found[0][1]) if found else None


def _instances(text: str) -> list[tuple[str, dict[str, Any]]]:
    """With their labels."""
    try:
        services = json.loads(text)
        return [(label, dict(one)) for label, group in services.items() for one in group]
    except (ValueError, TypeError, AttributeError, RecursionError):
        # json's messages show what they have read, and that has secrets.
        raise ConfigInvalid(f"{_VARIABLE}: is not JSON as Cloud Foundry writes it") from None


def _binding(instance: dict[str, Any]) -> Binding:
    name, credentials = str(instance.get("name")), instance.get("credentials")
    if not isinstance(credentials, dict):
        raise ConfigInvalid(f"{_VARIABLE}: service {name} has no credentials")
    values = {key: credentials.get(key) or "" for key in (*_REQUIRED, "region", "host")}
    missing = [key for key in _REQUIRED if not values[key]]
    if missing:
        raise ConfigInvalid(f"{_VARIABLE}: service {name} has no {', '.join(missing)} (not S3?)")
    wrong = [key for key, value in values.items() if not isinstance(value, str)]
    if wrong:
        raise ConfigInvalid(f"{_VARIABLE}: service {name}: {', '.join(wrong)}: not text")
    return Binding(name=name, **values)
