"""VCAP_SERVICES as Cloud Foundry writes it, and as it should not be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchpredict import cloudfoundry, s3
from batchpredict.errors import BatchPredictError, ConfigInvalid, UsageError
from tests import s3servers
from tests.s3servers import TEST_KEY_ID, TEST_SECRET

CREDENTIALS = {
    "access_key_id": TEST_KEY_ID,
    "secret_access_key": TEST_SECRET,
    "bucket": "bound",
    "region": "eu-central-1",
    "host": "s3-eu-central-1.amazonaws.com",
    "uri": f"s3://{TEST_KEY_ID}:{TEST_SECRET}@s3-eu-central-1.amazonaws.com/bound",
    "username": "somebody",
}


def instance(name: str = "models", **changes: Any) -> dict[str, Any]:
    credentials = {**CREDENTIALS, **changes}
    return {"name": name, "label": "objectstore", "plan": "standard", "credentials": credentials}


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)

    def bind(value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        monkeypatch.setenv("VCAP_SERVICES", text)
        s3.connect_to(None, None)

    bind("")
    yield bind
    s3.connect_to(None, None)


def test_nothing_is_bound(services: Any) -> None:
    assert cloudfoundry.binding(None) is None
    services({"xsuaa": [{"name": "auth", "credentials": {}}]})
    assert cloudfoundry.binding(None) is None


def test_the_object_store_is_found(services: Any) -> None:
    services({"xsuaa": [{"name": "auth", "credentials": {}}], "objectstore": [instance()]})
    found = cloudfoundry.binding(None)
    assert found == cloudfoundry.Binding(
        name="models",
        bucket="bound",
        region="eu-central-1",
        host="s3-eu-central-1.amazonaws.com",
        access_key_id=TEST_KEY_ID,
        secret_access_key=TEST_SECRET,
    )
    assert TEST_KEY_ID not in repr(found)
    assert TEST_SECRET not in repr(found)


def test_one_of_several_is_named(services: Any) -> None:
    services(
        {
            "objectstore": [instance("one"), instance("two", bucket="second")],
            "user-provided": [instance("three", bucket="third")],
        }
    )
    with pytest.raises(UsageError, match="name one, --service of one, two"):
        cloudfoundry.binding(None)
    for name, bucket in (("two", "second"), ("three", "third")):
        found = cloudfoundry.binding(name)
        assert found
        assert found.bucket == bucket
    with pytest.raises(UsageError, match="--service four: VCAP_SERVICES has no service"):
        cloudfoundry.binding("four")
    services("")
    with pytest.raises(UsageError, match="--service one: VCAP_SERVICES is not set"):
        cloudfoundry.binding("one")


@pytest.mark.parametrize(
    "value",
    [
        f'{{"objectstore": [{TEST_SECRET}',
        f'["{TEST_SECRET}"]',
        {"objectstore": TEST_SECRET},
        {"objectstore": [TEST_SECRET]},
        {"objectstore": {"name": TEST_SECRET}},
        {"objectstore": [{"name": "models"}]},
        {"objectstore": [{"name": "models", "credentials": [TEST_SECRET]}]},
        {"objectstore": [instance(bucket="")]},
        {"objectstore": [instance(bucket=[TEST_SECRET])]},
        {"objectstore": [instance(secret_access_key=None)]},
        {"objectstore": [instance(region=1)]},
        {"objectstore": None},
        "[" * 100_000,
    ],
)
def test_what_is_malformed_is_not_shown(services: Any, value: Any) -> None:
    services(value)
    with pytest.raises(ConfigInvalid, match=r"^VCAP_SERVICES: ") as caught:
        cloudfoundry.binding(None)
    for secret in (TEST_SECRET, TEST_KEY_ID):
        assert secret not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_key_without_a_bucket_is_in_the_bound_one(services: Any) -> None:
    services({"objectstore": [instance()]})
    assert s3.parse("s3:///a/b") == s3.Address("bound", "a/b")
    assert s3.parse("s3://other/a/b") == s3.Address("other", "a/b")
    assert s3.bound_bucket() == "bound"
    services("")
    with pytest.raises(UsageError, match="names no bucket"):
        s3.parse("s3:///a/b")


@pytest.mark.parametrize(
    ("host", "region", "endpoint"),
    [
        ("s3-eu-central-1.amazonaws.com", "eu-central-1", None),
        ("s3.cn-north-1.amazonaws.com.cn", "cn-north-1", None),
        ("s3.amazonaws.com", "", "https://s3.amazonaws.com"),
        ("minio.internal:9000", "", "https://minio.internal:9000"),
        ("http://minio.internal:9000", "x", "http://minio.internal:9000"),
        ("", "eu-central-1", None),
    ],
)
def test_the_endpoint_is_that_of_the_binding(
    services: Any, host: str, region: str, endpoint: str | None
) -> None:
    services({"objectstore": [instance(host=host, region=region)]})
    assert s3.endpoint() == endpoint


def test_the_environment_wins_unless_a_service_is_named(
    services: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    services({"objectstore": [instance(host="minio.internal")]})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert s3.endpoint() == "http://127.0.0.1:9"
    s3.connect_to("http://127.0.0.1:10", None)
    assert s3.endpoint() == "http://127.0.0.1:10"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "own")
            s3.connect_to(None, None)
            assert s3.bound_bucket() is None
            s3.connect_to(None, "models")
            assert s3.bound_bucket() == "bound"
            assert s3.endpoint() == "https://minio.internal"


def test_a_named_service_needs_nothing_of_the_environment(
    seaweed: s3servers.Server,
    seaweed_bucket: str,
    services: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services({"objectstore": [instance(host=seaweed.url, bucket=seaweed_bucket)]})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    s3.connect_to(None, "models")
    s3.store().write(s3.parse("s3:///key"), b"content")
    assert seaweed.client().head_object(Bucket=seaweed_bucket, Key="key")["ContentLength"] == 7


@pytest.mark.parametrize(
    "url", ["http://[::1", "AKIAX:hunter2@minio:9000", "http://me:hunter2@minio", "minio:9000"]
)
def test_an_endpoint_is_refused_without_showing_it(url: str) -> None:
    s3.connect_to(url, None)
    with pytest.raises(UsageError) as refused:
        s3.store()
    assert str(refused.value).startswith("--endpoint_url: must be")
    assert "minio" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_the_bound_store_is_used(
    seaweed: s3servers.Server, seaweed_bucket: str, services: Any
) -> None:
    """With its own keys, which SeaweedFS checks, and none in the environment."""
    services({"objectstore": [instance(host=seaweed.url, bucket=seaweed_bucket)]})
    address = s3.parse("s3:///folder/key")
    s3.store().write(address, b"content")
    stored = seaweed.client().head_object(Bucket=seaweed_bucket, Key="folder/key")
    assert stored["ContentLength"] == 7
    services({"objectstore": [instance(host=seaweed.url, secret_access_key="old")]})
    with pytest.raises(BatchPredictError, match="does not know the credentials"):
        s3.store().head(address)
