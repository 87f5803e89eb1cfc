"""S3 servers on loopback, each a process of its own, and the environment that leads to one."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Recognisable: no log, error, receipt, cache or process list may have them.
TEST_KEY_ID = "AKIATESTKEYIDTHATNOBODYMAYSEE"
TEST_SECRET = "test-secret-that-nobody-may-see"
WEED = Path(sys.executable).with_name("weed")
REGION = "us-east-1"
_PATIENCE = 60.0


def reveals(content: bytes) -> bool:
    """Whether it has one of the credentials."""
    return any(secret.encode() in content for secret in (TEST_KEY_ID, TEST_SECRET))


@dataclass(frozen=True)
class Server:
    name: str
    url: str

    def client(self) -> Any:
        """Plain boto3, to judge ours by; one for all who ask."""
        return self._client

    @functools.cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=TEST_KEY_ID,
            aws_secret_access_key=TEST_SECRET,
            region_name=REGION,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def share_descriptions() -> None:
    """Have boto3 parse its description of S3 once, not for every client of every test."""
    import botocore.session
    from botocore.loaders import create_loader

    loader = create_loader()
    botocore.session.create_loader = lambda search_path_string=None: loader


def environment(url: str, nowhere: Path) -> dict[str, str | None]:
    """Variables that lead boto3 to `url`, here and in subprocesses; None are to be unset."""
    unset = [name for name in os.environ if name.startswith(("AWS_", "VCAP_"))]
    return {
        **dict.fromkeys(unset),
        "AWS_ACCESS_KEY_ID": TEST_KEY_ID,
        "AWS_SECRET_ACCESS_KEY": TEST_SECRET,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(nowhere / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(nowhere / "credentials"),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def moto() -> Iterator[Server]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _process(command, f"{url}/moto-api/"):
        server = Server("moto", url)
        yield server
        server.client().close()


@contextlib.contextmanager
def seaweed(directory: Path) -> Iterator[Server]:
    """SeaweedFS: checks signatures, dates and Content-MD5, which moto does not."""
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = {f"{name}{grpc}": free_port() for name in names for grpc in ("", ".grpc")}
    credentials = [{"accessKey": TEST_KEY_ID, "secretKey": TEST_SECRET}]
    config = directory / "s3.json"
    identity = {"name": "test", "credentials": credentials, "actions": ["Admin"]}
    config.write_text(json.dumps({"identities": [identity]}))
    # A bucket gets one file of volumes at first, not seven.
    (directory / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    more = {
        "dir": directory,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 1024,
        "volume.max": 10_000,
        "filer.localSocket": directory / "filer.sock",
        "s3.localSocket": directory / "s3.sock",
        "s3.config": config,
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
    }
    options = [f"-{name}={value}" for name, value in {**more, **ports}.items()]
    url = f"http://127.0.0.1:{ports['s3.port']}"
    with _process([str(WEED), "server", "-s3", *options], url, directory):
        server = Server("seaweed", url)
        # The first write waits for a volume, longer than tests want to.
        server.client().create_bucket(Bucket="first")
        server.client().put_object(Bucket="first", Key="first", Body=b"first")
        yield server
        server.client().close()


@contextlib.contextmanager
def _process(command: list[str], answers: str, cwd: Path | None = None) -> Iterator[None]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "VCAP_"))}
    env["S3_UPLOAD_PART_MIN_SIZE"] = "1"  # of moto: tests use parts below S3's 5 MiB
    null = subprocess.DEVNULL
    with subprocess.Popen(
        command, env=env, cwd=cwd, stdin=null, stdout=null, stderr=null
    ) as server:
        try:
            _wait(server, answers)
            yield
        finally:
            server.kill()


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            with opener.open(url, timeout=5):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (403, 404):  # it answers
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"no answer from {url}, server's status {server.poll()}")
