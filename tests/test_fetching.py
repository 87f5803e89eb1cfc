"""What a run does with --model: paths, references and folders of buckets."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from batchpredict import s3
from batchpredict.errors import BatchPredictError, ConfigInvalid, Unavailable, UsageError
from batchpredict.job import Job
from batchpredict.model.package import read_package
from batchpredict.model.registry.cache import Cache
from batchpredict.model.registry.folder import FolderObjects
from batchpredict.model.registry.removal import remove
from batchpredict.model.registry.store import Store, open_store
from batchpredict.run.fetching import Fetched, Pinned, fetch
from batchpredict.run.origin import ModelChoice
from batchpredict.s3 import Missing
from tests import commands, s3servers, stores
from tests.fault_proxy import Proxy, proxy_of


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=["folder", "s3_bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    return open_store(f"s3://{request.getfixturevalue(request.param)}/models/")


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "store"))
    for version in "12":
        stores.pushed(made, stores.model(tmp_path / version, version, notes__more=b"n"))
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every key that is read in a folder."""
    found: list[str] = []
    opened = FolderObjects._opened

    def counted(self: FolderObjects, key: str) -> Any:
        found.append(key)
        return opened(self, key)

    monkeypatch.setattr(FolderObjects, "_opened", counted)
    return found


def get(store: Store, model: str = "reviews", **options: Any) -> Fetched:
    pinned = options.pop("pinned", None)
    with fetch(ModelChoice(model, store.url, **options), pinned) as fetched:
        return fetched


def unreachable(tmp_path: Path) -> None:
    (tmp_path / "store").rename(tmp_path / "elsewhere")


def reachable(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").rename(tmp_path / "store")


def test_a_version_of_a_store(store: Store, tmp_path: Path) -> None:
    source = stores.model(tmp_path / "a", notes__more=b"n")
    pushed = stores.pushed(store, source, aliases=("champion",))
    with fetch(ModelChoice("reviews@champion", store.url)) as fetched:
        assert (fetched.name, fetched.version, fetched.alias) == ("reviews", "1", "champion")
        assert fetched.manifest_sha256 == pushed.manifest.sha256
        assert (fetched.store, fetched.warnings) == (store.url, ())
        assert fetched.package.digest == read_package(source).digest
        assert (fetched.package.name, fetched.package.version) == ("reviews", "1")
        assert (fetched.package.directory / "notes/more").read_bytes() == b"n"
        assert Cache.of_user().prune(0).in_use == (("reviews", "1"),)
    assert Cache.of_user().prune(0).removed == (("reviews", "1"),)
    assert get(store, "reviews@1").alias is None
    assert get(store, f"reviews#sha256:{pushed.manifest.sha256}").version == "1"


def test_a_path_stays_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stores.model(tmp_path / "reviews")
    stores.model(tmp_path / "a@b")
    for model in ("reviews", "./reviews", "reviews/model.onnx", "a@b"):
        with fetch(ModelChoice(model)) as fetched:
            assert fetched.package == read_package(model)
            assert (fetched.alias, fetched.store, fetched.manifest_sha256) == (None, None, None)
    store = open_store(str(tmp_path / "store"))
    stores.pushed(store, stores.model(tmp_path / "other", "other"), "others")
    for model in ("./reviews", "reviews/model.onnx", str(tmp_path / "reviews")):
        assert get(store, model).store is None
    with pytest.raises(Missing, match=r"no such model in .*=\./reviews"):
        get(store, "reviews")
    assert get(store, "others").store == store.url
    assert not (tmp_path / "cache" / "batchpredict" / "optimized").exists()


@pytest.mark.parametrize("model", ["reviews@7", f"reviews#sha256:{'a' * 64}"])
def test_a_reference_without_a_store(model: str) -> None:
    with pytest.raises(UsageError, match="--model_store"):
        fetch(ModelChoice(model))


@pytest.mark.parametrize("model", ["reviews@", "reviews@a b", "reviews#7", "my model"])
def test_references_that_are_none(folder: Store, model: str) -> None:
    with pytest.raises(UsageError, match=r"--model: .*=\./"):
        get(folder, model)


def test_a_job_is_a_choice(folder: Store) -> None:
    with fetch(Job(("x.csv",), "reviews", model_store=folder.url)) as fetched:
        assert fetched.version == "2"


def test_an_alias_is_asked_once_and_an_exact_version_never(
    folder: Store, asked: list[str], tmp_path: Path
) -> None:
    assert get(folder).version == "2"
    assert asked.count("reviews/aliases/latest.json") == 1
    files = [key for key in asked if "/versions/2/" in key and "manifest" not in key]
    assert len(set(files)) == 5
    asked.clear()
    sha256 = get(folder).manifest_sha256
    assert asked == ["reviews/aliases/latest.json", "reviews/versions/2/manifest.json"]
    get(folder, "reviews@1")
    asked.clear()
    unreachable(tmp_path)
    for model in ("reviews@1", f"reviews#sha256:{sha256}", f"reviews@2#sha256:{sha256}"):
        assert get(folder, model).warnings == ()
    assert asked == []
    with pytest.raises(ConfigInvalid, match="check which version is meant"):
        get(folder, f"reviews@1#sha256:{sha256}")
    with pytest.raises(ConfigInvalid, match="check which version is meant"):
        get(folder, f"other#sha256:{sha256}")


def test_named_versions_are_exact_too(folder: Store, asked: list[str], tmp_path: Path) -> None:
    stores.pushed(folder, stores.model(tmp_path / "r", "r"), version="rc1")
    assert get(folder, "reviews@rc1").alias is None
    asked.clear()
    assert get(folder, "reviews@rc1").version == "rc1"
    assert asked == []


def test_a_digest_alone_says_nothing_of_latest(folder: Store) -> None:
    first = folder.manifest("reviews", "1").sha256
    assert get(folder, f"reviews#sha256:{first}").version == "1"
    assert get(folder).version == "2"


@pytest.mark.parametrize("offline", [False, True])
def test_no_digest_but_the_accepted_one(folder: Store, tmp_path: Path, *, offline: bool) -> None:
    get(folder)
    get(folder, "reviews@1")
    first, other = folder.manifest("reviews", "1").sha256, "a" * 64
    with pytest.raises(ConfigInvalid, match="not accepted"):
        get(folder, f"reviews@latest#sha256:{first}")
    if not offline:
        unreachable(tmp_path)
    for model in (f"reviews#sha256:{other}", f"reviews@latest#sha256:{first}"):
        with pytest.raises(Unavailable):
            get(folder, model, offline=offline)
    with pytest.raises(Unavailable):
        get(folder, f"reviews@1#sha256:{other}", offline=offline)


def test_a_store_that_cannot_be_reached(
    folder: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    get(folder)
    unreachable(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        fetched = get(folder)
    assert fetched.version == "2"
    assert fetched.alias == "latest"
    (warning,) = fetched.warnings
    assert "version 2 is used, which it named less than a minute ago" in warning
    assert [record.getMessage() for record in caplog.records] == [warning]
    with pytest.raises(Unavailable, match="check the mount"):
        get(folder, "reviews@champion")
    with pytest.raises(Unavailable, match="more than --max_model_age allows"):
        get(folder, max_model_age=0.0)
    aged(8 * 86400)
    with pytest.raises(Unavailable, match=r"check the mount.*version 2.*8 days old") as caught:
        get(folder)
    assert caught.value.exit_code == 69
    assert get(folder, max_model_age=9 * 86400.0).version == "2"
    reachable(tmp_path)
    folder.promote("reviews", "1", "latest")
    assert get(folder).version == "1"


def aged(seconds: float) -> None:
    for path in (Cache.of_user().folder / "resolved").iterdir():
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "when": time.time() - seconds}))


def test_offline(folder: Store, asked: list[str]) -> None:
    with pytest.raises(Unavailable, match=r"is not in the cache .* run once without") as caught:
        get(folder, offline=True)
    assert caught.value.exit_code == 69
    get(folder)
    folder.promote("reviews", "1", "latest")
    aged(100 * 86400)
    asked.clear()
    assert get(folder, offline=True).version == "2"
    assert get(folder, "reviews@latest", offline=True, max_model_age=1e9).warnings == ()
    with pytest.raises(Unavailable, match=r"100 days ago, longer than --max_model_age"):
        get(folder, offline=True, max_model_age=86400.0)
    assert asked == []


def test_what_is_no_outage_ends_the_run(folder: Store, tmp_path: Path) -> None:
    get(folder)
    get(folder, "reviews@1")
    path = tmp_path / "store" / "reviews" / "aliases" / "latest.json"
    path.unlink()
    with pytest.raises(Missing):
        get(folder)
    path.write_text("{}")
    with pytest.raises(ConfigInvalid):
        get(folder)


def test_a_new_version_that_cannot_be_fetched_leaves_the_last(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(folder)
    stores.pushed(folder, stores.model(tmp_path / "3", "3"))

    def broken(*arguments: Any) -> str:
        raise Unavailable("the connection was reset")

    with monkeypatch.context() as patch:
        patch.setattr(FolderObjects, "fetch", broken)
        fetched = get(folder)
    assert fetched.version == "2"
    assert "the connection was reset" in fetched.warnings[0]
    assert get(folder).version == "3"


def test_wrong_bytes_of_a_store_are_never_used(folder: Store, tmp_path: Path) -> None:
    get(folder, "reviews@1")
    version = tmp_path / "store" / "reviews" / "versions" / "2"
    own = version / "batchpredict.toml"  # the other files are those of version 1
    content = own.read_bytes()
    own.write_bytes(content.replace(b"neg", b"NEG"))
    with pytest.raises(ConfigInvalid, match="other bytes than the manifest says"):
        get(folder)
    own.write_bytes(content[:-1])
    with pytest.raises(ConfigInvalid, match="the manifest says"):
        get(folder)
    own.unlink()
    with pytest.raises(Missing):
        get(folder)


@pytest.mark.parametrize("file", ["model.onnx", "config.json", "tokenizer.json"])
def test_a_changed_byte_in_the_cache(
    folder: Store, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = get(folder).package.directory
    content = (directory / file).read_bytes()

    def damage(at: int) -> None:
        path = directory / file
        path.chmod(0o644)
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])

    damage(len(content) // 2)
    with caplog.at_level(logging.WARNING):
        fetched = get(folder)
    assert "is damaged; fetching it again" in caplog.text
    assert (fetched.package.directory / file).read_bytes() == content
    damage(0)
    with pytest.raises(ConfigInvalid, match="is damaged; run once without --offline") as caught:
        get(folder, offline=True)
    assert caught.value.exit_code == 78
    assert get(folder).version == "2"
    assert open_locks() == []


def open_locks() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            found.append(str(link.readlink()))
    return [path for path in found if "/batchpredict/models/" in path]


def test_a_model_that_is_wrong_itself_is_not_fetched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(tmp_path / "store"))
    source = stores.model(tmp_path / "a")
    pushed = stores.pushed(store, source)
    assert get(store).manifest_sha256 == pushed.manifest.sha256
    real = read_package

    def refused(path: Any) -> Any:
        real(path)
        raise ConfigInvalid("this version of the tool does not take it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchpredict.run.fetching.read_package", refused)
        with pytest.raises(ConfigInvalid, match="this version"):
            get(store)
    assert "damaged" not in caplog.text
    assert open_locks() == []


def test_an_interrupted_run_goes_on_with_its_version(folder: Store, tmp_path: Path) -> None:
    before = get(folder)
    assert before.version == "2"
    pinned = Pinned("reviews", "2", "latest", before.manifest_sha256 or "")
    folder.promote("reviews", "1", "latest")
    assert get(folder).version == "1"
    kept = get(folder, pinned=pinned)
    assert (kept.version, kept.alias) == ("2", "latest")
    Cache.of_user().prune(0)
    assert get(folder, pinned=pinned).version == "2"
    # Another model, or another way to name one, is what the operator wants now.
    assert get(folder, "reviews@1", pinned=pinned).version == "1"
    folder.promote("reviews", "1", "champion")
    assert get(folder, "reviews@champion", pinned=pinned).version == "1"
    remove(folder, "reviews", "2")
    assert get(folder, pinned=pinned).version == "2"
    Cache.of_user().prune(0)
    assert get(folder, pinned=pinned).version == "1"


def test_what_was_rolled_back_is_not_gone_on_with(
    folder: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = get(folder)
    pinned = Pinned("reviews", "2", "latest", before.manifest_sha256 or "")
    folder.rollback("reviews", "latest")
    assert get(folder, pinned=pinned).version == "1"
    assert "version 2, which was rolled back" in caplog.text
    # Whether it was cannot be known.
    assert get(folder, pinned=pinned, offline=True).version == "2"
    unreachable(tmp_path)
    assert get(folder, pinned=pinned).version == "2"


def test_several_processes_fetch_once(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    source = stores.model(tmp_path / "a", big=os.urandom(20_000_000))
    stores.pushed(store, source)
    script = (
        "import sys; from batchpredict.run.fetching import *\n"
        "from batchpredict.run.origin import *\n"
        "from batchpredict.model.registry.folder import FolderObjects\n"
        "import time\n"
        "whole = FolderObjects.fetch\n"
        "def told(self, entry, path, watch):\n"
        "    open(sys.argv[2], 'a').write(entry.key + chr(10)); time.sleep(0.2)\n"
        "    return whole(self, entry, path, watch)\n"
        "FolderObjects.fetch = told\n"
        "with fetch(ModelChoice('reviews', sys.argv[1])) as f: print(f.version)\n"
    )
    arguments = [sys.executable, "-c", script, store.url, str(tmp_path / "told")]
    running = [
        subprocess.Popen(arguments, env=commands.environment(), stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert said == [b"1\n"] * 4
    assert len((tmp_path / "told").read_text().splitlines()) == 5


# --- folders of buckets


def put(bucket: str, directory: Path, prefix: str) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            key = f"{prefix}{path.relative_to(directory).as_posix()}"
            s3.store().upload(path, s3.Address(bucket, key))


def test_a_plain_folder_of_a_bucket(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stores.model(tmp_path / "a", sub__more=b"1")
    (source / ".hidden").write_text("")
    (source / "manifest.json").write_text('{"name": "of another tool"}')
    put(s3_bucket, source, "some/where/")
    put(s3_bucket, stores.model(tmp_path / "b", "b"), "some/where-else/")
    downloads = counted(monkeypatch)
    url = f"s3://{s3_bucket}/some/where"
    with fetch(ModelChoice(url)) as fetched:
        assert fetched.package.digest == read_package(source).digest
        assert (fetched.name, fetched.alias) == ("where", None)
        assert (fetched.package.directory / "sub/more").read_bytes() == b"1"
        assert not (fetched.package.directory / ".hidden").exists()
        first = fetched.manifest_sha256
    assert len(downloads) == 5
    with fetch(ModelChoice(f"{url}/")) as fetched:
        assert fetched.manifest_sha256 == first
    assert len(downloads) == 5
    (source / "sub/more").write_bytes(b"2")
    s3.store().upload(source / "sub/more", s3.Address(s3_bucket, "some/where/sub/more"))
    with fetch(ModelChoice(url)) as fetched:
        assert fetched.manifest_sha256 != first
    assert len(downloads) == 6
    with fetch(ModelChoice(url, offline=True)) as fetched:
        assert fetched.version
    with pytest.raises(Missing):
        fetch(ModelChoice(f"s3://{s3_bucket}/some/wher"))
    s3.connect_to("http://127.0.0.1:1", None)
    with pytest.raises(Unavailable):
        fetch(ModelChoice(url))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    download = s3.S3.download

    def told(self: Any, stored: Any, path: Path, watch: Callable[[int], None]) -> str:
        found.append(stored.address.key)
        return download(self, stored, path, watch)

    monkeypatch.setattr(s3.S3, "download", told)
    return found


def test_a_folder_of_a_bucket_without_a_graph_is_not_fetched(s3_bucket: str) -> None:
    for key in ("data/a.csv", "model/onnx/model.onnx", "model/tokenizer.json"):
        s3.store().write(s3.parse(f"s3://{s3_bucket}/{key}"), b"0")
    for folder in ("", "data/"):
        with pytest.raises(ConfigInvalid, match=f"{s3_bucket}/{folder}: there is no .onnx"):
            fetch(ModelChoice(f"s3://{s3_bucket}/{folder}"))
    assert not list(Cache.of_user().folder.glob("blobs/*"))


def test_a_graph_in_a_bucket_with_what_it_needs(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stores.model(tmp_path / "a", unrelated=b"1")
    graph = source / "model.onnx"
    onnx.save_model(
        onnx.load(graph), graph, save_as_external_data=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    put(s3_bucket, source, "m/")
    downloads = counted(monkeypatch)
    for _ in range(2):
        with fetch(ModelChoice(f"s3://{s3_bucket}/m/model.onnx")) as fetched:
            assert fetched.package.digest == read_package(graph).digest
            assert fetched.name == "model"
        assert sorted(key.removeprefix("m/") for key in downloads) == [
            "batchpredict.toml",
            "config.json",
            "model.onnx",
            "tokenizer.json",
            "weights.bin",
        ]
    (source / "onnx").mkdir()
    graph.rename(source / "onnx" / "model.onnx")
    (source / "weights.bin").rename(source / "onnx" / "weights.bin")
    put(s3_bucket, source, "n/")
    with fetch(ModelChoice(f"s3://{s3_bucket}/n/onnx/model.onnx")) as fetched:
        assert fetched.package.digest == read_package(source / "onnx" / "model.onnx").digest


def test_a_version_named_by_its_folder(s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}/models/")
    pushed = stores.pushed(store, stores.model(tmp_path / "a"))
    url = f"s3://{s3_bucket}/models/reviews/versions/1/"
    with fetch(ModelChoice(url)) as fetched:
        assert fetched.manifest_sha256 == pushed.manifest.sha256
        assert (fetched.name, fetched.version) == ("reviews", "1")
    store.objects.remove("reviews/versions/1/manifest.json")
    with pytest.raises(Missing, match="a version that is not complete"):
        fetch(ModelChoice(url))


def test_the_store_of_cloud_foundry(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.pushed(open_store(f"s3://{s3_bucket}/models"), stores.model(tmp_path / "a"))
    credentials = {
        "access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "bucket": s3_bucket,
        "region": "us-east-1",
        "host": os.environ["AWS_ENDPOINT_URL"],
    }
    services = {"objectstore": [{"name": "store", "credentials": credentials}]}
    monkeypatch.setenv("VCAP_SERVICES", json.dumps(services))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    s3.connect_to(None, None)
    with fetch(ModelChoice("reviews")) as fetched:
        assert fetched.store == f"s3://{s3_bucket}/models/"
    for path in Cache.of_user().folder.rglob("*"):
        if path.is_file():
            assert credentials["secret_access_key"].encode() not in path.read_bytes()


def test_stores_of_one_name_on_two_servers_are_two(s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}/models/")
    stores.pushed(store, stores.model(tmp_path / "a"))
    assert get(store, "reviews@1").version == "1"
    s3.connect_to("http://127.0.0.1:1", None)
    with pytest.raises(BatchPredictError):
        get(store, "reviews@1", offline=True)


def test_no_boto3_where_there_is_no_bucket(tmp_path: Path) -> None:
    stores.model(tmp_path / "m")
    script = (
        "import sys; from batchpredict.run.fetching import *\n"
        "from batchpredict.run.origin import *\n"
        "fetch(ModelChoice('m')); print([m for m in sys.modules if 'boto' in m])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env=commands.environment(), capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == b"[]\n"


def test_kills() -> None:
    """A short version of what `python -m tests.store_kills` does."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.store_kills", "--pushes", "4", "--pulls", "4"],
        cwd=commands.CHECKOUT, env=commands.environment(), capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.count(b" 0 wrong")) == (0, 2), done


# --- what networks and stores do


@pytest.fixture
def proxy(
    s3_server: s3servers.Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    with proxy_of(s3_server.url) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        s3.connect_to(None, None)
        yield made
        s3.connect_to(None, None)


@pytest.fixture
def remote(proxy: Proxy, s3_bucket: str, tmp_path: Path) -> Store:
    made = open_store(f"s3://{s3_bucket}/models/")
    stores.pushed(made, stores.model(tmp_path / "1"))
    assert get(made).version == "1"
    stores.pushed(made, stores.model(tmp_path / "2", "2"))
    proxy.forget()
    return made


def test_requests_of_a_run(proxy: Proxy, remote: Store) -> None:
    assert get(remote).version == "2"
    assert proxy.count("^GET .*/aliases/latest.json") == 1
    assert proxy.count("^GET .*/manifest.json") == 1
    # One file is another than in version 1.
    assert proxy.count() == 2 + 2, proxy.requests
    proxy.forget()
    assert get(remote).version == "2"
    assert proxy.count() == 2
    proxy.forget()
    # What an alias named is known by its number too.
    assert get(remote, "reviews@1").version == "1"
    assert get(remote, "reviews@2").version == "2"
    assert get(remote, offline=True).version == "2"
    assert proxy.count() == 0


@pytest.mark.parametrize("kind", ["expired", "denied", "unknown_key", "skewed"])
def test_a_store_that_refuses(proxy: Proxy, remote: Store, kind: str) -> None:
    """Then the last version is used, as when it is not there; without one the run ends."""
    proxy.add(kind)
    fetched = get(remote)
    assert fetched.version == "1"
    (warning,) = fetched.warnings
    assert proxy.count() <= 5
    assert "\n" not in warning
    for secret in (s3servers.TEST_KEY_ID, s3servers.TEST_SECRET):
        assert secret not in warning
    with pytest.raises(Unavailable):
        get(remote, "reviews@2")
    assert get(remote, "reviews@1").warnings == ()


def test_a_wrong_byte_on_its_way_is_noticed(proxy: Proxy, remote: Store) -> None:
    proxy.add("flip_answer", "^GET .*batchpredict.toml", times=1, after=3)
    assert get(remote).version == "2"
    Cache.of_user().prune(0)
    proxy.add("flip_answer", "^GET .*batchpredict.toml", after=3)
    with pytest.raises(ConfigInvalid, match="other bytes than the manifest says"):
        get(remote)


def test_an_object_replaced_by_a_stranger(remote: Store, tmp_path: Path) -> None:
    other = tmp_path / "2" / "batchpredict.toml"
    other.write_bytes(other.read_bytes().replace(b"pos", b"POS"))
    remote.objects.upload(other, "reviews/versions/2/batchpredict.toml", lambda _: None)
    with pytest.raises(ConfigInvalid, match="other bytes than the manifest says"):
        get(remote)
    with pytest.raises(ConfigInvalid):
        get(remote, offline=False, max_model_age=1e9)


@pytest.mark.parametrize("kind", ["ignore_conditions", "refuse_conditions"])
def test_a_server_without_conditions(
    proxy: Proxy, s3_bucket: str, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.add(kind, "^PUT")
    store = open_store(f"s3://{s3_bucket}/models/")
    for version in "12":
        stores.pushed(store, stores.model(tmp_path / version, version))
    assert store.rollback("reviews", "latest").alias.version == "1"
    assert get(store).version == "1"
    assert caplog.text.count("only one process at a time") == 1


@pytest.mark.parametrize("kind", ["precondition", "conflict", "lose"])
def test_a_condition_that_is_not_met_once(proxy: Proxy, remote: Store, kind: str) -> None:
    """Refused for somebody else's change, or for our own whose answer was lost."""
    proxy.add(kind, "^PUT .*/aliases/", times=1)
    changed = remote.promote("reviews", "1", "latest", "once")
    assert [change.why for change in changed.history] == ["", "", "once"]
    assert proxy.count("^PUT .*/aliases/") <= 3
