"""The transport: real servers, and a proxy that does what networks and stores do."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchpredict import s3
from batchpredict.errors import (
    BatchPredictError,
    ConfigInvalid,
    InputMissing,
    OutputWriteFailed,
    TryAgain,
    Unavailable,
    UsageError,
)
from batchpredict.s3 import connection, crew, download
from tests import s3servers
from tests.commands import environment
from tests.fault_proxy import Proxy, proxy_of

PART = 64 << 10
SMALL = random.Random(1).randbytes(3000)
LARGE = random.Random(2).randbytes(5 * PART + 1234)
ODD_KEY = "a folder/ü+%2F & ~?#.bin"


@pytest.fixture
def proxy(
    s3_server: s3servers.Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    """Before moto, with short timeouts and pauses; `s3.store()` goes through it."""
    with proxy_of(s3_server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3.connect_to(None, None)
        yield proxy
        s3.connect_to(None, None)


@pytest.fixture(autouse=True)
def _in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, no pauses."""
    _cut(monkeypatch, PART)
    monkeypatch.setattr("batchpredict.s3.download._PART", PART)
    monkeypatch.setattr("batchpredict.s3.download._SMALL_PART", PART)
    monkeypatch.setattr("batchpredict.s3.body._FIRST_PAUSE", 0.001)
    backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(backoff, lambda self, context: 0.001)


def _cut(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    for module in ("upload", "objects"):
        monkeypatch.setattr(f"batchpredict.s3.{module}.PART", part)
    monkeypatch.setattr("batchpredict.s3.upload._IN_FLIGHT", 4 * part)


@pytest.fixture
def large(any_bucket: str, s3_server: s3servers.Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What takes several parts; SeaweedFS insists on those of 5 MiB, as S3 does."""
    if os.environ["AWS_ENDPOINT_URL"] == s3_server.url:
        return LARGE
    _cut(monkeypatch, 5 << 20)
    return random.Random(5).randbytes(11 << 20)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def at(bucket: str, key: str = "key") -> s3.Address:
    return s3.Address(bucket, key)


def uploads(server: s3servers.Server, bucket: str) -> list[str]:
    found = server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return [upload["UploadId"] for upload in found]


# What a store can do, on each server.


def test_an_object_is_what_was_written(any_bucket: str) -> None:
    store, address = s3.store(), at(any_bucket, ODD_KEY)
    before = time.time()
    etag = store.write(address, SMALL)
    stored = store.head(address)
    assert (stored.address, stored.size, stored.etag) == (address, len(SMALL), etag)
    assert before - 2 <= stored.modified_ns / 1e9 <= time.time() + 2
    assert store.read(address, len(SMALL)) == (SMALL, stored)
    assert list(store.list(at(any_bucket, ""))) == [stored]
    assert s3.parse(address.url) == address
    store.remove(address)
    store.remove(address)
    for use in (store.head, lambda a: store.read(a, 10)):
        with pytest.raises(s3.Missing, match="does not exist"):
            use(address)


def test_many_are_copied_and_removed_at_once(any_bucket: str) -> None:
    names = [at(any_bucket, f"from/{n}") for n in range(200)]
    for n, name in enumerate(names):
        s3.store().write(name, b"%d" % n)
    copies = [at(any_bucket, f"to/{n}") for n in range(200)]
    s3.store().copy_all(zip(names, copies, strict=True))
    s3.store().remove_all(names)
    assert len(list(s3.store().list(at(any_bucket, "")))) == 200
    assert [s3.store().read(name, 9)[0] for name in copies] == [b"%d" % n for n in range(200)]


def test_the_first_that_cannot_be_copied_ends_all(any_bucket: str) -> None:
    s3.store().write(at(any_bucket, "there"), SMALL)
    pairs = [(at(any_bucket, "there"), at(any_bucket, "here"))] * 5
    with pytest.raises(s3.Missing, match="gone"):
        s3.store().copy_all([*pairs, (at(any_bucket, "gone"), at(any_bucket, "here")), *pairs])


def test_no_call_begins_after_one_that_has_failed() -> None:
    fails, others = threading.Event(), threading.Event()
    made: list[int] = []

    def fail() -> None:
        fails.wait(30)
        raise ValueError("the first")

    def calls() -> Iterator[Callable[[], object]]:
        yield from [lambda: others.wait(30)] * 7
        yield fail
        yield from [lambda: made.append(1)] * 20  # no thread is free for these
        fails.set()
        time.sleep(0.3)
        others.set()
        time.sleep(0.1)

    with pytest.raises(ValueError, match="the first"):
        crew.call_all(calls())
    assert made == []


def test_more_than_is_asked_for_is_not_read(any_bucket: str) -> None:
    s3.store().write(at(any_bucket), SMALL)
    with pytest.raises(ConfigInvalid, match="has 3000 bytes, 2999 at most"):
        s3.store().read(at(any_bucket), 2999)


def test_objects_and_folders_are_listed_page_by_page(
    any_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchpredict.s3.calls._PAGE", 2)
    keys = ["a/1", "a/2", "a/b/3", "a/b/4", "a/c/5", "a/é+ /6", "ab/7", "top"]
    for key in keys:
        s3.store().write(at(any_bucket, key), b"x")
    found = [stored.address.key for stored in s3.store().list(at(any_bucket, "a/"))]
    assert found == keys[:6]
    direct = s3.store().list(at(any_bucket, "a/"), directly=True)
    assert [stored.address.key for stored in direct] == keys[:2]
    assert list(s3.store().folders(at(any_bucket, "a"))) == ["b", "c", "é+ "]
    assert list(s3.store().folders(at(any_bucket, ""))) == ["a", "ab"]
    assert list(s3.store().list(at(any_bucket, "nothing/"))) == []


def test_conditions_are_kept(any_bucket: str) -> None:
    store, address = s3.store(), at(any_bucket)
    with pytest.raises(s3.Refused):
        store.write(address, b"0", etag='"0123456789abcdef0123456789abcdef"')
    first = store.write(address, b"1", absent=True)
    with pytest.raises(s3.Refused):
        store.write(address, b"2", absent=True)
    second = store.write(address, b"3", etag=first)
    with pytest.raises(s3.Refused):
        store.write(address, b"4", etag=first)
    assert store.read(address, 9)[0] == b"3"
    assert store.head(address).etag == second
    assert store.is_conditional(at(any_bucket, "probed"))
    assert [stored.address for stored in store.list(at(any_bucket, ""))] == [address]


def test_no_concurrent_change_is_lost(seaweed_bucket: str) -> None:
    address = at(seaweed_bucket)
    s3.store().write(address, b"0")

    def count() -> None:
        for _ in range(5):
            while True:
                content, stored = s3.store().read(address, 9)
                try:
                    s3.store().write(address, b"%d" % (int(content) + 1), etag=stored.etag)
                    break
                except s3.Refused:
                    continue

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert s3.store().read(address, 9)[0] == b"20"


@pytest.mark.parametrize("size", [0, 3000, 1 << 30], ids=["empty", "one-part", "parts"])
def test_files_go_up_and_come_down(
    any_bucket: str, large: bytes, size: int, tmp_path: Path
) -> None:
    content = large[:size]
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    seen: list[int] = []
    etag = s3.store().upload(source, at(any_bucket), seen.append)
    stored = s3.store().head(at(any_bucket))
    assert (stored.size, stored.etag, sum(seen)) == (len(content), etag, len(content))
    seen.clear()
    assert s3.store().download(stored, target, seen.append) == sha256(content)
    assert (target.read_bytes(), sum(seen)) == (content, len(content))
    assert sorted(tmp_path.iterdir()) == [source, target]
    with pytest.raises(s3.Refused):
        s3.store().upload(source, at(any_bucket), absent=True)


def test_a_stream_is_visible_when_it_is_published(any_bucket: str, large: bytes) -> None:
    noted: list[str] = []
    upload = s3.store().begin(at(any_bucket), noted.append)
    for begin in range(0, len(large), 10_000):
        upload.write(large[begin : begin + 10_000])
    upload.finish()
    assert upload.id
    assert noted == [upload.id]
    with pytest.raises(s3.Missing):
        s3.store().head(at(any_bucket))
    etag = upload.publish()
    upload.abort()
    stored = s3.store().head(at(any_bucket))
    assert stored.etag == etag
    with s3.store().open(stored) as body:
        assert body.read() == large
    with s3.store().open(stored, 10, PART + 10) as body, io.BufferedReader(body) as reader:
        assert reader.read() == large[10 : PART + 10]


def test_a_small_stream_is_one_request(proxy: Proxy, s3_bucket: str) -> None:
    upload = s3.store().begin(at(s3_bucket))
    upload.write(LARGE[:PART])
    upload.finish()
    assert (upload.id, proxy.requests) == (None, [])
    upload.publish()
    assert proxy.requests == [f"PUT /{s3_bucket}/key"]
    assert s3.store().read(at(s3_bucket), PART)[0] == LARGE[:PART]


def test_what_is_given_up_leaves_nothing(seaweed: s3servers.Server, seaweed_bucket: str) -> None:
    store = s3.store()
    killed, aborted = store.begin(at(seaweed_bucket)), store.begin(at(seaweed_bucket))
    for upload in (killed, aborted):
        upload.write(LARGE)
    aborted.abort()
    assert uploads(seaweed, seaweed_bucket) == [killed.id]
    assert killed.id
    for _ in range(2):  # the second time there is nothing, which is fine
        store.abort_stale(at(seaweed_bucket), killed.id)
    assert uploads(seaweed, seaweed_bucket) == []
    with pytest.raises(Unavailable, match="the upload is gone"):
        killed.publish()
    killed.abort()


# Laws.

_DROPS = st.tuples(
    st.sampled_from(["truncate", "truncate", "reset_answer"]),
    st.sampled_from([0, 1, 7, 100, 1500]),
)
_LAW = settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_LAW
@given(
    drops=st.lists(_DROPS, max_size=12),
    span=st.tuples(st.integers(0, 3000), st.integers(0, 3000)).map(sorted),
    most=st.integers(1, 4000),
)
def test_a_body_is_exact_whatever_breaks(
    proxy: Proxy,
    s3_bucket: str,
    drops: list[tuple[str, int]],
    span: list[int],
    most: int,
) -> None:
    proxy.forget()
    stored = _written(s3_bucket, SMALL)
    for kind, after in drops:
        proxy.add(kind, "^GET", times=1, after=after)
    with s3.store().open(stored, *span) as body:
        try:
            got = b"".join(iter(lambda: body.take(most), b""))
        except Unavailable:
            # Six in a row without a byte; a reset may take along what has come.
            assert sum(after == 0 or kind == "reset_answer" for kind, after in drops) >= 6
            return
    assert got == SMALL[span[0] : span[1]]
    assert proxy.count("^GET") <= len(drops) + 1


def _written(bucket: str, content: bytes) -> s3.Stored:
    s3.store().write(at(bucket), content)
    return s3.store().head(at(bucket))


@_LAW
@given(sizes=st.lists(st.integers(0, 2 * PART), max_size=8), whole=st.booleans())
def test_a_stream_is_exact_however_it_is_written(
    proxy: Proxy, s3_bucket: str, sizes: list[int], whole: bool
) -> None:
    proxy.forget()
    sizes = [size // PART * PART if whole else size for size in sizes]
    upload = s3.store().begin(at(s3_bucket))
    content = random.Random(3).randbytes(sum(sizes))
    position = 0
    for size in sizes:
        assert upload.write(content[position : position + size]) == size
        position += size
    upload.publish()
    parts = -(-len(content) // PART)
    assert proxy.count("^PUT.*partNumber") == (parts if parts > 1 else 0)
    assert s3.store().read(at(s3_bucket), len(content))[0] == content


def test_a_long_stream_gets_large_parts(
    proxy: Proxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchpredict.s3.upload._SMALL_PARTS", 2)
    monkeypatch.setattr("batchpredict.s3.upload._LARGE_PART", 10 * PART)
    content = random.Random(4).randbytes(25 * PART)
    upload = s3.store().begin(at(s3_bucket))
    upload.write(content)
    upload.publish()
    assert proxy.count("^PUT.*partNumber") == 2 + 3
    assert s3.store().read(at(s3_bucket), len(content))[0] == content


def test_a_download_continues_where_it_failed(proxy: Proxy, s3_bucket: str, tmp_path: Path) -> None:
    s3.store().write(at(s3_bucket), LARGE)
    stored, target = s3.store().head(at(s3_bucket)), tmp_path / "target"
    proxy.add("denied", "^GET", skip=3)
    with pytest.raises(Unavailable):
        s3.store().download(stored, target)
    done = len(s3.sidecar(target).read_text().splitlines()) - 1
    proxy.forget()
    seen: list[int] = []
    assert s3.store().download(stored, target, seen.append) == sha256(LARGE)
    assert sum(seen) == len(LARGE)
    assert proxy.count("^GET") == 6 - done
    assert done <= 3
    assert target.read_bytes() == LARGE
    assert list(tmp_path.iterdir()) == [target]


def test_a_download_of_another_object_begins_anew(
    proxy: Proxy, s3_bucket: str, tmp_path: Path
) -> None:
    old, target = _written(s3_bucket, LARGE), tmp_path / "target"
    proxy.add("denied", "^GET", skip=3)
    with pytest.raises(Unavailable):
        s3.store().download(old, target)
    proxy.forget()
    new = _written(s3_bucket, LARGE[::-1])
    assert s3.store().download(new, target) == sha256(LARGE[::-1])
    with pytest.raises(s3.Changed, match="was replaced while it was read"):
        s3.store().download(old, target)


@given(size=st.integers(0, 1 << 30))
def test_parts_are_the_whole_object(size: int) -> None:
    spans = download._spans(size)
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans)][: len(spans)]
    assert (spans[-1][1] if spans else 0) == size
    assert all(begin < end <= begin + download._PART for begin, end in spans)


@pytest.mark.parametrize("damage", ["", "[1]\n", "\x00\xff", "1\n2\n3\n"])
def test_a_damaged_sidecar_is_not_believed(s3_bucket: str, tmp_path: Path, damage: str) -> None:
    stored, target = _written(s3_bucket, LARGE), tmp_path / "target"
    target.write_bytes(bytes(len(LARGE)))
    s3.sidecar(target).write_bytes(damage.encode("latin-1"))
    assert s3.store().download(stored, target) == sha256(LARGE)


# Faults. First of all: what is done to a store, and with how many calls.


def _read(bucket: str, path: Path) -> bytes:
    return s3.store().read(at(bucket), len(LARGE))[0]


def _stream(bucket: str, path: Path) -> bytes:
    with s3.store().open(_stored(bucket)) as body:
        return body.read()


def _stored(bucket: str) -> s3.Stored:
    """Without a call through the proxy."""
    return STORED[bucket]


STORED: dict[str, s3.Stored] = {}


def _download(bucket: str, path: Path) -> bytes:
    target = path / "target"
    digest = s3.store().download(_stored(bucket), target)
    content = target.read_bytes()
    assert digest == sha256(content)
    return content


def _write(bucket: str, path: Path) -> bytes:
    s3.store().write(at(bucket), LARGE[:PART])
    return b""


def _upload(bucket: str, path: Path) -> bytes:
    source = path / "source"
    source.write_bytes(LARGE)
    s3.store().upload(source, at(bucket))
    return b""


def _publish(bucket: str, path: Path) -> bytes:
    upload = s3.store().begin(at(bucket))
    try:
        upload.write(LARGE)
        return upload.publish().encode()[:0]
    except Unavailable:
        upload.abort()
        raise


Use = Callable[[str, Path], bytes]
READS: list[Use] = [_read, _stream, _download]
WRITES: list[Use] = [_write, _upload, _publish]
CALLS: dict[Use, int] = {_read: 1, _stream: 1, _download: 6, _write: 1, _upload: 8, _publish: 8}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READ_TIMEOUT", 0.4)
    s3.connect_to(None, None)


@pytest.fixture
def faulty(proxy: Proxy, s3_bucket: str) -> Proxy:
    """A proxy before a bucket with one object, of which nobody has spoken yet."""
    STORED[s3_bucket] = _written(s3_bucket, LARGE)
    proxy.forget()
    return proxy


@pytest.mark.parametrize("use", [*READS, *WRITES])
def test_calls_are_as_few_as_can_be(
    faulty: Proxy, s3_bucket: str, tmp_path: Path, use: Use
) -> None:
    assert use(s3_bucket, tmp_path) in (LARGE, b"")
    assert faulty.count() == CALLS[use]


@pytest.mark.parametrize("use", [*READS, *WRITES])
def test_what_passes_is_retried(
    faulty: Proxy, s3_bucket: str, tmp_path: Path, use: Use, impatient: None
) -> None:
    for kind in ("500", "slow_down", "reset_request", "lose", "silence"):
        fault = faulty.add(kind, times=2 if kind != "silence" else 1)
        assert use(s3_bucket, tmp_path) in (LARGE, b"")
        assert faulty.count() == CALLS[use] + fault.happened
        assert fault.happened == fault.times
        faulty.forget()


@pytest.mark.parametrize("use", READS)
def test_a_broken_answer_is_continued(
    faulty: Proxy, s3_bucket: str, tmp_path: Path, use: Use, impatient: None
) -> None:
    for kind in ("reset_answer", "truncate", "stall"):
        faulty.add(kind, "^GET", times=2)
        assert use(s3_bucket, tmp_path) == LARGE
        assert faulty.count() == CALLS[use] + 2
        faulty.forget()


@pytest.mark.parametrize("use", READS)
def test_answers_that_stay_empty_end_it(
    faulty: Proxy, s3_bucket: str, tmp_path: Path, use: Use
) -> None:
    for kind in ("reset_answer", "truncate"):
        faulty.add(kind, "^GET", after=0)
        with pytest.raises(Unavailable):
            use(s3_bucket, tmp_path)
        assert faulty.count() <= (6 if use is not _download else 6 * 6)
        faulty.forget()


# What a store says or does for good, what we say then, and how often we ask.
LASTING = {
    "500": ("fails or is overloaded (InternalError", 5),
    "slow_down": ("fails or is overloaded (SlowDown", 5),
    "reset_request": ("cannot be reached", 5),
    "expired": ("the credentials have expired", 1),
    "skewed": ("this machine's clock is wrong", 1),
    "denied": ("the credentials give no access", 1),
    "unknown_key": ("does not know the credentials", 1),
    "not_implemented": ("does not support the request", 1),
}


@pytest.mark.parametrize("use", [*READS, *WRITES])
def test_what_does_not_pass_is_said_in_one_line(
    faulty: Proxy, s3_bucket: str, tmp_path: Path, use: Use
) -> None:
    for kind, (text, attempts) in LASTING.items():
        faulty.add(kind)
        with pytest.raises(Unavailable) as caught:
            use(s3_bucket, tmp_path)
        assert str(caught.value).startswith(f"s3://{s3_bucket}/key: ")
        assert text in str(caught.value)
        _has_no_secret(caught.value)
        threads = 6 if use is _download else 1
        assert attempts <= faulty.count() <= attempts * threads
        faulty.forget()


def _has_no_secret(error: BaseException) -> None:
    told = "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)
    for secret in (s3servers.TEST_KEY_ID, s3servers.TEST_SECRET, "AWS4-HMAC"):
        assert secret not in told
    assert "\n" not in str(error)


@pytest.mark.parametrize("use", [_upload, _publish])
def test_a_failed_upload_is_aborted(
    faulty: Proxy,
    s3_server: s3servers.Server,
    s3_bucket: str,
    tmp_path: Path,
    use: Use,
) -> None:
    for pattern in ("partNumber=3", "POST.*uploadId"):
        for kind in ("500", "expired", "reset_request"):
            faulty.add(kind, pattern)
            with pytest.raises(Unavailable):
                use(s3_bucket, tmp_path)
            assert faulty.count("^DELETE") == 1
            assert faulty.count(pattern) == (1 if kind == "expired" else 5)
            assert uploads(s3_server, s3_bucket) == []
            assert s3.store().head(at(s3_bucket)) == _stored(s3_bucket)
            faulty.forget()


def test_a_store_that_is_silent_ends_it(
    faulty: Proxy, s3_bucket: str, tmp_path: Path, impatient: None
) -> None:
    faulty.add("silence")
    with pytest.raises(Unavailable, match="does not answer in time"):
        _read(s3_bucket, tmp_path)
    assert faulty.count() == 5


def test_head_says_as_much_as_get(faulty: Proxy, s3_bucket: str) -> None:
    for kind in ("500", "expired", "denied", "unknown_key", "skewed"):
        faulty.add(kind)
        with pytest.raises(Unavailable) as caught:
            s3.store().head(at(s3_bucket))
        text = "fails or is overloaded (500" if kind == "500" else LASTING[kind][0]
        assert text in str(caught.value)
        # After a 400 botocore asks for the bucket's region.
        assert faulty.count() == {"500": 5, "expired": 3}.get(kind, 2)
        _has_no_secret(caught.value)
        faulty.forget()


@pytest.mark.parametrize("kind", ["precondition", "conflict"])
@pytest.mark.parametrize("condition", [{"absent": True}, {"etag": '"1"'}])
def test_a_refusal_is_asked_for_once(
    faulty: Proxy, s3_bucket: str, kind: str, condition: dict
) -> None:
    faulty.add(kind)
    with pytest.raises(s3.Refused, match="another writer was faster"):
        s3.store().write(at(s3_bucket), SMALL, **condition)
    assert faulty.count() == 1


@pytest.mark.parametrize("kind", ["ignore_conditions", "refuse_conditions"])
def test_a_store_without_conditions_is_noticed(faulty: Proxy, s3_bucket: str, kind: str) -> None:
    faulty.add(kind, "^PUT")
    for _ in range(2):
        assert not s3.store().is_conditional(at(s3_bucket, "models/"))
    assert faulty.count() == (3 if kind == "ignore_conditions" else 1)
    assert [stored.address.key for stored in s3.store().list(at(s3_bucket, ""))] == ["key"]


def test_a_probe_that_fails_is_no_answer(faulty: Proxy, s3_bucket: str) -> None:
    faulty.add("denied")
    with pytest.raises(Unavailable, match="give no access"):
        s3.store().is_conditional(at(s3_bucket, "models/"))
    faulty.forget()
    assert s3.store().is_conditional(at(s3_bucket, "models/"))


def test_our_own_write_is_known_again(faulty: Proxy, s3_bucket: str) -> None:
    """Its answer is lost, and the next attempt finds an object."""
    faulty.add("lose", "^PUT", times=1)
    etag = s3.store().write(at(s3_bucket, "new"), SMALL, absent=True)
    assert s3.store().read(at(s3_bucket, "new"), 9999)[1].etag == etag
    faulty.add("lose", "^PUT", times=1)
    newer = s3.store().write(at(s3_bucket, "new"), SMALL[1:], etag=etag)
    assert s3.store().head(at(s3_bucket, "new")).etag == newer
    faulty.add("precondition", "^PUT", skip=1)
    faulty.add("500", "^PUT", times=1)
    with pytest.raises(s3.Refused):  # repeated too, and it was not ours
        s3.store().write(at(s3_bucket, "new"), SMALL, absent=True)


@pytest.mark.parametrize("absent", [False, True])
def test_our_own_completion_is_known_again(
    any_bucket: str, large: bytes, absent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy_of(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3.connect_to(None, None)
        proxy.add("lose", "^POST.*uploadId", times=1)
        upload = s3.store().begin(at(any_bucket))
        upload.write(large)
        etag = upload.publish(absent=absent)
        assert s3.store().head(at(any_bucket)).etag == etag
        assert proxy.count("^POST.*uploadId") == 2
        s3.connect_to(None, None)


def test_a_wrong_byte_is_seen_in_the_digest(faulty: Proxy, s3_bucket: str, tmp_path: Path) -> None:
    faulty.add("flip_answer", "^GET", times=1)
    assert s3.store().download(_stored(s3_bucket), tmp_path / "target") != sha256(LARGE)


@pytest.mark.parametrize("use", WRITES)
def test_a_wrong_byte_is_not_stored(
    seaweed: s3servers.Server,
    seaweed_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    use: Use,
) -> None:
    with proxy_of(seaweed.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3.connect_to(None, None)
        proxy.add("flip_request", "^PUT", after=2000)
        with pytest.raises(Unavailable):
            use(seaweed_bucket, tmp_path)
        with pytest.raises(s3.Missing):
            s3.store().head(at(seaweed_bucket))
        s3.connect_to(None, None)
    assert uploads(seaweed, seaweed_bucket) == []


@pytest.mark.parametrize("kind", ["ignore_conditions", "ignore_range"])
def test_a_get_is_not_believed_blindly(faulty: Proxy, s3_bucket: str, kind: str) -> None:
    faulty.add(kind, "^GET")
    stored = _stored(s3_bucket)
    if kind == "ignore_conditions":
        s3.store().write(at(s3_bucket), LARGE[::-1])
    with s3.store().open(stored, 5) as body, pytest.raises((Unavailable, TryAgain)) as caught:
        body.read()
    wanted = "was replaced" if kind == "ignore_conditions" else "does not serve ranges"
    assert wanted in str(caught.value)


# What is wrong with the environment.


def test_a_web_page_is_no_store(faulty: Proxy, s3_bucket: str) -> None:
    faulty.add("html")
    with pytest.raises(Unavailable, match="not an S3 store"):
        list(s3.store().list(at(s3_bucket, "")))


def test_nobody_at_home(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{s3servers.free_port()}"
    s3.connect_to(url, None)
    with pytest.raises(Unavailable, match=f"{url} cannot be reached; check the endpoint"):
        s3.store().head(at(s3_bucket))


def test_no_credentials(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(Unavailable, match="no complete credentials"):
        s3.store().head(at(s3_bucket))


@pytest.mark.parametrize(
    ("key_id", "secret"),
    [(s3servers.TEST_KEY_ID, "wrong"), ("AKIAWRONG", s3servers.TEST_SECRET)],
)
def test_wrong_credentials(
    seaweed_bucket: str, monkeypatch: pytest.MonkeyPatch, key_id: str, secret: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    for use in (s3.store().head, lambda a: s3.store().write(a, b"")):
        with pytest.raises(Unavailable, match="does not know the credentials") as caught:
            use(at(seaweed_bucket))
        _has_no_secret(caught.value)
        assert key_id not in str(caught.value)


def test_no_bucket(any_bucket: str) -> None:
    address = at("no-such-bucket-anywhere")
    for use in (
        lambda: s3.store().check_bucket(address),
        lambda: s3.store().write(address, b""),
        lambda: list(s3.store().list(address)),
        lambda: s3.store().begin(address).publish(),
    ):
        with pytest.raises(s3.Missing, match="there is no such bucket"):
            use()
    s3.store().check_bucket(at(any_bucket))


@pytest.mark.parametrize(
    "url", ["s3:/a/b", "s3://A B/c", "s3:///key", "s3://b/" + "k" * 1025, "s3://b/\udcff", "s3://"]
)
def test_names_that_are_none(s3_bucket: str, url: str) -> None:
    with pytest.raises(UsageError):
        s3.parse(url)


@pytest.mark.parametrize("url", ["127.0.0.1:9000", "ftp://host", "http://user:secret@host"])
def test_endpoints_that_are_none(s3_bucket: str, url: str) -> None:
    s3.connect_to(url, None)
    with pytest.raises(UsageError, match="--endpoint_url") as caught:
        s3.store()
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_read_or_written(s3_bucket: str, tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="cannot be read"):
        s3.store().upload(tmp_path / "none", at(s3_bucket))
    stored = _written(s3_bucket, SMALL)
    with pytest.raises(OutputWriteFailed, match="cannot be written: no such file"):
        s3.store().download(stored, tmp_path / "none" / "target")


@pytest.mark.parametrize(
    ("variables", "file", "url"),
    [
        ({}, "", "https://s3.eu-central-1.amazonaws.com"),
        ({"AWS_ENDPOINT_URL": "http://other:1"}, "", "http://other:1"),
        ({}, "endpoint_url = http://other:2", "http://other:2"),
        (
            {"AWS_ENDPOINT_URL": "http://o:3", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
            "",
            "https://s3.eu-central-1.amazonaws.com",
        ),
    ],
)
def test_only_aws_gets_what_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
    file: str,
    url: str,
) -> None:
    (tmp_path / "config").write_text(f"[default]\n{file}\n")
    given = s3servers.environment("", tmp_path)
    given = {**given, "AWS_ENDPOINT_URL": None, "AWS_DEFAULT_REGION": "eu-central-1", **variables}
    for name, value in given.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    client = connection.client(connection.Connection())
    config = client.meta.config
    ours = (config.request_checksum_calculation, (config.s3 or {}).get("addressing_style"))
    assert client.meta.endpoint_url == url
    assert ours == (("when_supported", None) if "amazonaws" in url else ("when_required", "path"))
    assert config.retries == {"mode": "standard", "total_max_attempts": 5}
    client.close()


def test_a_user_in_the_endpoint_is_not_told(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://somebody:{s3servers.TEST_SECRET}@127.0.0.1:{s3servers.free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    assert s3servers.TEST_SECRET not in str(s3.endpoint())
    with pytest.raises(BatchPredictError) as caught:
        s3.store().head(at(s3_bucket))
    _has_no_secret(caught.value)


# Signals and memory.

_DOWNLOADER = """
import sys
from pathlib import Path
from batchpredict import s3, signals
from batchpredict.s3 import connection, download
connection.READ_TIMEOUT, download._SMALL_PART, download._PART = 20, {part}, {part}
signals.raise_on_signals()
stored = s3.store().head(s3.parse(sys.argv[1]))
print("asked", flush=True)
s3.store().download(stored, Path(sys.argv[2]))
"""


def _start_download(bucket: str, target: Path) -> subprocess.Popen[bytes]:
    code = _DOWNLOADER.format(part=PART)
    command = [sys.executable, "-c", code, at(bucket).url, str(target)]
    return subprocess.Popen(command, env=environment(), stdout=-1, stderr=-1)


def _wait_for_parts(target: Path, count: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        parts = s3.sidecar(target)
        if parts.exists() and len(parts.read_text().splitlines()) > count:
            return
        time.sleep(0.02)
    raise AssertionError("the download does not come along")


def test_ctrl_c_ends_a_download_that_stalls(faulty: Proxy, s3_bucket: str, tmp_path: Path) -> None:
    faulty.add("stall", "^GET", skip=2)
    target = tmp_path / "target"
    with _start_download(s3_bucket, target) as process:
        _wait_for_parts(target, 2)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert stderr.decode().splitlines()[-1] == "KeyboardInterrupt"


def test_an_interrupt_reaches_every_thread(faulty: Proxy, s3_bucket: str, tmp_path: Path) -> None:
    fault = faulty.add("stall", "^GET")

    def watch(count: int) -> None:
        if fault.happened == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        s3.store().download(_stored(s3_bucket), tmp_path / "target", watch)
    assert _threads() == []


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "s3"]


def test_a_killed_download_continues(faulty: Proxy, s3_bucket: str, tmp_path: Path) -> None:
    faulty.add("stall", "^GET", skip=3)
    target = tmp_path / "target"
    with _start_download(s3_bucket, target) as process:
        _wait_for_parts(target, 3)
        process.kill()
        process.communicate()
    faulty.forget()
    assert s3.store().download(_stored(s3_bucket), target) == sha256(LARGE)
    assert faulty.count("^GET") == 3


def test_threads_end_with_the_transfer(faulty: Proxy, s3_bucket: str, tmp_path: Path) -> None:
    for use in (_download, _upload, _publish):
        use(s3_bucket, tmp_path)
        faulty.add("denied", skip=3)
        with pytest.raises(Unavailable):
            use(s3_bucket, tmp_path)
        faulty.forget()
    assert _threads() == []


def test_a_stream_waits_for_a_slow_store(faulty: Proxy, s3_bucket: str, impatient: None) -> None:
    faulty.add("silence", "partNumber")
    upload = s3.store().begin(at(s3_bucket))
    accepted: list[int] = []
    with pytest.raises(Unavailable, match="does not answer in time"):
        accepted.extend(upload.write(bytes(PART)) for _ in range(100))
    assert len(accepted) <= 6
    upload.abort()


def test_boto3_is_not_imported_before_the_first_call(s3_bucket: str) -> None:
    code = (
        "import sys; from batchpredict import cli, s3; s3.connect_to(None, None); s3.store(); "
        "s3.parse('s3://bucket/key'); assert not {'boto3', 'botocore', 'urllib3'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_no_other_md5_is_accepted(seaweed_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = hashlib.md5
    monkeypatch.setattr(hashlib, "md5", lambda content, **more: md5(content + b"x", **more))
    with pytest.raises(Unavailable, match="Digest"):
        s3.store().write(at(seaweed_bucket), SMALL)


def test_a_region_that_is_none(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu central")
    with pytest.raises(ConfigInvalid, match=r"region.*AWS_DEFAULT_REGION"):
        s3.store().head(s3.Address(s3_bucket, "in.csv"))
