"""What goes wrong between us and a store, in one line each: where it is and what to do.

The texts are ours: a store's may name the credentials, and so may those of libraries. Nothing is
chained for the same reason.
"""

from __future__ import annotations

import re
from typing import Any

from batchpredict.errors import ConfigInvalid, TryAgain, Unavailable


class Missing(Unavailable):
    """There is no such object, upload or bucket."""

    repeated = False  # whether an earlier attempt of the same call may have reached the store


class Refused(Unavailable):
    """A condition was not met, or another writer was at the same object at the same time."""

    repeated = False


class Changed(TryAgain):
    """The object was replaced while it was read."""


class Unsupported(Unavailable):
    """The store does not know what is asked of it."""


class Denied(Unavailable):
    """The store knows the credentials, and they give no right to what is asked."""


class Unreachable(Unavailable):
    """Nothing answers, after all attempts."""


class Unexplained(Unavailable):
    """The store has answered with a number only."""


_CODE = re.compile(r"[A-Za-z0-9.]{1,60}")
_CREDENTIALS = frozenset(
    {
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidSecurity",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "NotSignedUp",
    }
)
_EXPIRED = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidToken",
        "RequestExpired",
        "TokenRefreshRequired",
    }
)
_REGION = frozenset(
    {
        "301",
        "307",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "PermanentRedirect",
        "TemporaryRedirect",
    }
)
_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
_DENIED = frozenset({"403", "AccessDenied", "AllAccessDisabled", "AccountProblem"})
_UNSUPPORTED = frozenset({"NotImplemented", "501", "InvalidArgument", "InvalidRequest"})


def code_of(error: Exception) -> str:
    """What the store calls its error, or the HTTP status where it says no more; "" of others."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return ""
    code = str(answer.get("Error", {}).get("Code", ""))
    return code if _CODE.fullmatch(code) else str(_status(error))


def _status(error: Exception) -> int:
    return int(_metadata(error).get("HTTPStatusCode", 0))


def _metadata(error: Exception) -> dict[str, Any]:
    answer = getattr(error, "response", None)
    return answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}


def explained(error: Exception, url: str, endpoint: str = "") -> Exception:
    """Ours for one of botocore's; what is no failure of the store (a bug) as it is."""
    import botocore.exceptions as boto
    import urllib3.exceptions
    from botocore.parsers import ResponseParserError

    if isinstance(error, boto.ClientError):
        ours = _answered(error, url)
        if isinstance(ours, Missing | Refused):
            ours.repeated = bool(_metadata(error).get("RetryAttempts", 0))
        return ours
    if isinstance(error, ResponseParserError):
        return not_a_store(url)
    if isinstance(error, boto.BotoCoreError):
        return _failed(error, url, endpoint)
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return Unavailable(f"{url}: the object store does not go on in time; try again")
    if isinstance(error, urllib3.exceptions.HTTPError | OSError):
        return Unavailable(f"{url}: the connection to the object store broke; try again")
    return error


def not_a_store(url: str) -> Unavailable:
    return Unavailable(f"{url}: what answers is not an S3 store; check the endpoint")


def _answered(error: Exception, url: str) -> Exception:
    code, status = code_of(error), _status(error)
    if code == "NoSuchBucket":
        return Missing(f"{url}: there is no such bucket; check the name and the endpoint")
    if code == "NoSuchUpload":
        return Missing(f"{url}: the upload is gone; the store or somebody has aborted it")
    if status == 404:
        return Missing(f"{url}: does not exist")
    if status in (409, 412):
        return Refused(f"{url}: another writer was faster ({code}); try again")
    if code in _UNSUPPORTED or status in (405, 501):
        return Unsupported(f"{url}: the object store does not support the request ({code})")
    if code.isdecimal() and status < 500:
        return Unexplained(f"{url}: {_reason(code, status)}")
    kind = Denied if code in _DENIED else Unavailable
    return kind(f"{url}: {_reason(code, status)}")


def _reason(code: str, status: int) -> str:
    if code in _CREDENTIALS:
        return f"the object store does not know the credentials ({code}); check them"
    if code in _EXPIRED:
        return f"the credentials have expired ({code}); renew them"
    if code in _CLOCK:
        return f"this machine's clock is wrong ({code}); set it"
    if code in _REGION:
        return f"the bucket is in another region ({code}); set AWS_DEFAULT_REGION"
    if code == "InvalidObjectState":
        return "the object is archived; have the store restore it"
    if code in _DENIED or status == 403:
        return f"the credentials give no access ({code}); ask for the right, or check the name"
    if status >= 500 or status == 429 or code == "SlowDown":
        return f"the object store fails or is overloaded ({code}, several attempts); try again"
    return f"the object store refuses the request ({code}, HTTP {status})"


def _failed(error: Exception, url: str, endpoint: str) -> Exception:
    import botocore.exceptions as boto

    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return Unavailable(
            f"{url}: there are no complete credentials; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE or bind an object store"
        )
    if isinstance(error, boto.ProfileNotFound):
        return Unavailable(f"{url}: AWS_PROFILE names a profile that does not exist")
    if isinstance(error, boto.InvalidRegionError):
        return ConfigInvalid(f"{url}: the region is not the name of one; check AWS_DEFAULT_REGION")
    if isinstance(error, boto.ConfigParseError | boto.InvalidConfigError | boto.NoRegionError):
        return ConfigInvalid(f"{url}: the AWS configuration is wrong ({type(error).__name__})")
    if isinstance(error, boto.ParamValidationError):
        return ConfigInvalid(f"{url}: is not a name that S3 allows")
    if isinstance(error, boto.SSLError):
        return Unavailable(f"{url}: the certificate of the object store is not trusted")
    store = f"the object store {endpoint}".rstrip()
    if isinstance(error, boto.ReadTimeoutError | boto.ConnectTimeoutError):
        return Unreachable(f"{url}: {store} does not answer in time; try again")
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return Unreachable(f"{url}: {store} cannot be reached; check the endpoint")
    return Unavailable(f"{url}: the object store cannot be used ({type(error).__name__})")
