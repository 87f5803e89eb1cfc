"""The plan: what the kernel lends, and sizes by formula from a memory limit."""

from __future__ import annotations

import os
from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpredict import cgroup
from batchpredict.errors import ConfigInvalid
from batchpredict.run import memory
from batchpredict.run.memory import MIB, Graph, Needs, Sizes, estimate, least, needs, within
from batchpredict.run.room import Room

WANTED = Sizes(64, 512, 4, 16384, 16 << 20, 2)
BATCH = ("batch_rows", "batch_tokens")
PINNED = st.frozensets(st.sampled_from(BATCH))


# --- what the kernel lends


def kernel(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """A kernel with these files; those without a leading slash are below /sys/fs/cgroup."""
    found = {name if name[0] == "/" else f"/sys/fs/cgroup/{name}": t for name, t in files.items()}
    monkeypatch.setattr(cgroup, "_read", found.get)


V2 = {"/proc/self/cgroup": "0::/a/b"}
V1 = {"/proc/self/cgroup": "4:memory:/a/b\n2:cpu,cpuacct:/a/b"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        (V2, 8),
        ({**V2, "cpu.max": "max 100000"}, 8),
        ({**V2, "cpu.max": "200000 100000"}, 2),
        ({**V2, "cpu.max": "20000 100000"}, 1),
        ({**V2, "cpu.max": "150000 100000"}, 2),
        ({**V2, "cpu.max": "9900000 100000"}, 8),
        ({**V2, "a/b/cpu.max": "300000 100000"}, 3),
        ({**V2, "a/cpu.max": "200000 100000", "a/b/cpu.max": "300000 100000"}, 2),
        ({**V2, "other/cpu.max": "100000 100000"}, 8),
        ({**V1, "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({**V1, "cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({**V1, "cpu,cpuacct/a/cpu.cfs_quota_us": "300000",
          "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 3),
        ({**V1, "cpu/cpu.cfs_quota_us": "300000"}, 8),
    ],
)  # fmt: skip
def test_effective_cores(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    kernel(monkeypatch, files)
    assert cgroup.effective_cores() == cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        (V2, None),
        ({**V2, "memory.max": "max", "a/b/memory.max": "5000"}, 5000),
        ({**V2, "a/memory.max": "4000", "a/b/memory.max": "max"}, 4000),
        ({**V2, "unified/a/b/memory.max": "3000"}, 3000),
        ({"/proc/self/cgroup": "0::/../../x", "memory.max": "2000"}, 2000),
        ({**V1, "memory/a/b/memory.limit_in_bytes": "9223372036854771712"}, None),
        ({**V1, "memory/a/b/memory.limit_in_bytes": "7000"}, 7000),
        ({**V1, "memory/memory.limit_in_bytes": "6000"}, 6000),
        ({**V1, "cpu/memory.limit_in_bytes": "6000"}, None),
    ],
)
def test_memory_limit(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], limit: int | None
) -> None:
    kernel(monkeypatch, files)
    assert cgroup.memory_limit() == limit


def test_the_kernel_says_something() -> None:
    assert 1 <= cgroup.effective_cores() <= (os.cpu_count() or 1)
    limit = cgroup.memory_limit()
    assert limit is None or limit > 0


# --- the formula


graphs = st.builds(
    Graph,
    bytes=st.integers(1000, 4 << 30),
    width=st.integers(1, 50_000),
    inputs=st.integers(1, 50),
    text=st.booleans(),
    tokenizer=st.integers(0, 20 << 20),
    heads=st.none() | st.integers(1, 32),
    max_length=st.none() | st.integers(8, 8192),
)
every_need = st.builds(needs, graphs, openvino=st.booleans(), parquet=st.booleans())
# Of the way from the least that fits to what everything needs; below 0 nothing fits.
shares = st.floats(-0.1, 1.1)
wanted_sizes = st.builds(
    Sizes,
    batch_rows=st.integers(1, 5000),
    batch_tokens=st.integers(1, 20_000),
    workers=st.integers(1, 70),
    window_rows=st.just(16384),
    window_bytes=st.just(16 << 20),
    queue_depth=st.just(2),
)


def limit_at(share: float, need: Needs, wanted: Sizes) -> int:
    low, high = estimate(need, least(wanted)), estimate(need, wanted)
    return round(low + share * (high - low))


@given(every_need, shares, shares, wanted_sizes, PINNED)
def test_a_larger_limit_never_plans_less(
    need: Needs, one: float, other: float, wanted: Sizes, pinned: frozenset[str]
) -> None:
    bounds = [limit_at(share, need, wanted) for share in sorted((one, other))]
    lower, upper = (within(need, limit, wanted, pinned) for limit in bounds)
    if lower is not None:
        assert upper is not None
        pairs = zip(astuple(lower), astuple(upper), astuple(wanted), strict=True)
        assert all(less <= more <= most for less, more, most in pairs)


@given(every_need, shares, wanted_sizes, PINNED)
def test_a_plan_fits_or_not_even_the_least_does(
    need: Needs, share: float, wanted: Sizes, pinned: frozenset[str]
) -> None:
    limit = limit_at(share, need, wanted)
    found = within(need, limit, wanted, pinned)
    if found is None:
        assert estimate(need, least(wanted, pinned)) > limit
    else:
        assert estimate(need, found) <= limit
        assert all(getattr(found, name) == getattr(wanted, name) for name in pinned)


@given(every_need, shares, wanted_sizes, st.integers(1, 70))
def test_what_shapes_bytes_does_not_follow_from_the_callers(
    need: Needs, share: float, wanted: Sizes, callers: int
) -> None:
    limit = limit_at(share, need, wanted)
    one = within(need, limit, wanted)
    other = within(need, limit, replace(wanted, workers=callers))
    assert (one is None) == (other is None)
    if one and other:
        assert replace(one, workers=1) == replace(other, workers=1)


@given(every_need, wanted_sizes)
def test_with_room_for_everything_nothing_is_lowered(need: Needs, wanted: Sizes) -> None:
    assert within(need, 1 << 60, wanted) == wanted


@given(every_need, shares, wanted_sizes)
def test_a_cgroup_lowers_callers_and_queues_alone(need: Needs, share: float, wanted: Sizes) -> None:
    lent = limit_at(share, need, wanted)
    found = Room(need, "g", None, lent).sizes(wanted)
    assert replace(found, workers=wanted.workers, queue_depth=wanted.queue_depth) == wanted
    assert found.workers >= 1
    assert found.queue_depth >= 1
    assert estimate(need, found) <= lent or (found.workers, found.queue_depth) == (1, 1)


@pytest.mark.parametrize(
    ("graph", "workers", "tokens", "openvino", "measured"),
    [  # MiB: what runs of real models held at most
        (Graph(90_320_080, 1536, 3, True, 466_247, None, 512), 2, 1024, False, 497),
        (Graph(541_000_000, 3072, 2, True, 3_000_000, 12, 512), 2, 1024, False, 980),
        (Graph(68_355_874, 1536, 2, True, 17_082_730, None, 512), 2, 1024, False, 645),
        (Graph(90_320_080, 1536, 3, True, 466_247, None, 128), 2, 1024, True, 630),
        (Graph(692_767, 20_000, 1, False), 2, 512, False, 180),
    ],
)
def test_estimates_are_above_what_was_measured(
    graph: Graph, workers: int, tokens: int, openvino: bool, measured: int
) -> None:
    sizes = Sizes(64, tokens, workers, 256, MIB // 4, 1)
    assert measured <= estimate(needs(graph, openvino=openvino), sizes) / MIB <= 2 * measured


# --- refusals


def minilm() -> Needs:
    return needs(Graph(90 * MIB, 1536, 3, True, 0, 12, 128))


def test_a_limit_below_the_smallest_plan_is_refused_with_numbers() -> None:
    with pytest.raises(ConfigInvalid) as error:
        Room(minilm(), "m/model.onnx", 200 * MIB, None).check()
    for word in ("--memory_limit=200MiB", "m/model.onnx", "while it is loaded", "one caller"):
        assert word in str(error.value)
    advised = str(error.value).partition("give it --memory_limit=")[2].partition("MiB")[0]
    Room(minilm(), "m/model.onnx", int(advised) * MIB, None).check()
    with pytest.raises(ConfigInvalid):
        Room(minilm(), "m/model.onnx", (int(advised) - 1) * MIB, None).check()


def test_batches_the_job_asks_for_are_kept_or_refused() -> None:
    wanted = replace(WANTED, batch_rows=1000, batch_tokens=20_000)
    room = Room(minilm(), "m", 512 * MIB, None)
    assert room.sizes(wanted).batch_tokens < 20_000
    with pytest.raises(
        ConfigInvalid, match=r"512MiB: m with --batch_rows=1000, --batch_tokens=\d+ needs \d"
    ):
        room.sizes(wanted, frozenset(BATCH))
    kept = replace(room, limit=4 << 30).sizes(wanted, frozenset(BATCH))
    assert kept.batch_tokens == 20_000


def test_tight_limits_reach_every_size() -> None:
    least_bytes = estimate(minilm(), least(WANTED))
    found = within(minilm(), least_bytes, WANTED)
    assert found is not None
    assert replace(found, batch_rows=2, batch_tokens=1) == least(WANTED)
    assert within(minilm(), least_bytes - 1, WANTED) is None
    assert memory.calmed(minilm(), 1, WANTED) == replace(WANTED, workers=1, queue_depth=1)
