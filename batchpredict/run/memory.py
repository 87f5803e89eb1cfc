"""What a run needs of memory, by formula, and the sizes that a limit leaves room for.

Nothing here looks at the machine or at what is free: equal jobs get equal sizes. The constants are
peaks of resident memory measured on x86-64 Linux with onnxruntime 1.31, rounded up:

- A process that has imported everything holds 100 MiB, one that scores tiny windows 170 to 190.
- A graph of 86 MiB (MiniLM, 6 layers) adds 125 MiB and 142 while it is loaded, one of 516
  (DistilBERT) 620 and 880, one of 65 in 4 bits (E5, 12 layers) 105 and 121; OpenVINO adds 246 and
  290 to the first, and as much again as 50 shapes of batches go by.
- A tokenizer.json of 16 MiB becomes 300 MiB.
- A caller holds per padded token 17 to 25 numbers of 4 bytes for each of the widest layer's
  outputs, and 12 to 20 bytes for each head and token of the row (MiniLM at 512 tokens 157 kB a
  token, DistilBERT, whose attention is one operator, 75).
- A graph of n-grams holds a dense number for each of them and row (20,000: 80 kB), several times.
- A full window of 16 MiB takes 26 MiB from CSV to CSV, 38 from one format to another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

MIB = 1 << 20

_IMPORTED = 120 * MIB
_PROCESS = 190 * MIB
# (bytes, share of the graph's bytes) once it is loaded, and while it is.
_LOADED = (15 * MIB, 1.35)
_LOADING = (20 * MIB, 1.8)
# OpenVINO compiles a copy, and keeps kernels for each shape of a batch.
_LOADED_OPENVINO = (300 * MIB, 3.4)
_LOADING_OPENVINO = (60 * MIB, 3.8)
_TOKENIZER_SHARE = 20
# Per padded token and value of the widest layer; per row where there are no tokens.
_TOKEN_VALUE_BYTES = 27
_ROW_VALUE_BYTES = 12
# Per padded token, head, and token of the row: the attention's scores and what is made of them.
_SCORE_BYTES = 20
# Numbers of a head, where the configuration states no number of heads: the fewest in use.
_HEAD_WIDTH = 128
# Tokens of the longest row where no file of the model says.
_UNSTATED_LENGTH = 512
# Windows outside the queues: being read, prepared, settled, written.
_WINDOWS_AT_WORK = 4
_WINDOW_ROW_BYTES = 400
_WINDOW_BYTES_SHARE = 2.5
# A Parquet writer's row group, held until it is full, beside the one being encoded.
_PARQUET_GROUPS = 160 * MIB

# boto3 and its client hold 35 MiB; of an output up to five parts of 16 wait to be uploaded.
S3Use = Literal["none", "read", "written"]
_S3 = {"none": 0, "read": 40 * MIB, "written": 170 * MIB}

_LEAST_BATCH_ROWS = 2
_LEAST_WINDOW_ROWS = 256
_LEAST_WINDOW_BYTES = MIB // 4
# So many callers come before windows grow to their full size, whatever the cores.
_CALLERS_FIRST = 2
# Windows of a quarter sort texts nearly as well as whole ones.
_WINDOW_PARTS = 4


@dataclass(frozen=True)
class Needs:
    """Bytes. `loading`: the peak while the graph is loaded. `fixed`: whatever the sizes are.

    `unit`: of one padded token in one caller, where `longest` (tokens of the longest row) is not
    0, else of one row. `row`: of one row in one window, beside its bytes.
    """

    loading: int
    fixed: int
    unit: int
    longest: int
    row: int


@dataclass(frozen=True)
class Sizes:
    """What memory depends on; see Plan."""

    batch_rows: int
    batch_tokens: int
    workers: int
    window_rows: int
    window_bytes: int
    queue_depth: int


@dataclass(frozen=True)
class Graph:
    """What the files of a model say. `tokenizer`: bytes of tokenizer.json, 0 where there is none.

    `bytes`: of graph and weights. `width`: the most values a node makes of a row or token. `heads`,
    `max_length`: None where no file says. `inputs`: how many. `text`: it takes token ids.
    """

    bytes: int
    width: int
    inputs: int
    text: bool
    tokenizer: int = 0
    heads: int | None = None
    max_length: int | None = None


def needs(
    graph: Graph, *, openvino: bool = False, parquet: bool = False, s3: S3Use = "none"
) -> Needs:
    """By the measured constants. `parquet`: an output is written as such. `s3`: what is there."""
    loaded = _LOADED_OPENVINO if openvino else _LOADED
    loading = _LOADING_OPENVINO if openvino else _LOADING
    fixed = _PROCESS + _of(loaded, graph.bytes) + _TOKENIZER_SHARE * graph.tokenizer
    unit, longest = _ROW_VALUE_BYTES * (graph.width + graph.inputs), 0
    if graph.text:
        longest = graph.max_length or _UNSTATED_LENGTH
        unit = _TOKEN_VALUE_BYTES * (graph.width + graph.inputs)
        unit += _SCORE_BYTES * (graph.heads or -(-graph.width // _HEAD_WIDTH)) * longest
    return Needs(
        loading=_IMPORTED + _of(loading, graph.bytes),
        fixed=fixed + (_PARQUET_GROUPS if parquet else 0) + _S3[s3],
        unit=unit,
        longest=longest,
        row=_WINDOW_ROW_BYTES + 16 * graph.inputs,
    )


def _of(constants: tuple[int, float], size: int) -> int:
    least, share = constants
    return least + round(share * size)


def estimate(needs: Needs, sizes: Sizes) -> int:
    """Most bytes the process holds at a time."""
    units = max(_LEAST_BATCH_ROWS, sizes.batch_rows)
    if needs.longest:
        # Two rows go together however long they are.
        tokens = max(sizes.batch_tokens, _LEAST_BATCH_ROWS * needs.longest)
        units = min(units * needs.longest, tokens)
    window = sizes.window_rows * needs.row + round(_WINDOW_BYTES_SHARE * sizes.window_bytes)
    # There are two queues.
    windows = (_WINDOWS_AT_WORK + 2 * sizes.queue_depth) * window
    return max(needs.loading, needs.fixed + sizes.workers * units * needs.unit + windows)


def least(most: Sizes, pinned: frozenset[str] = frozenset()) -> Sizes:
    """The smallest sizes of any use; those `pinned` (of a batch) stay as they are."""
    floors = {
        "batch_rows": _LEAST_BATCH_ROWS,
        "batch_tokens": 1,
        "workers": 1,
        "window_rows": _LEAST_WINDOW_ROWS,
        "window_bytes": _LEAST_WINDOW_BYTES,
        "queue_depth": 1,
    }
    return Sizes(
        **{
            name: size if name in pinned else min(size, floors[name])
            for name, size in asdict(most).items()
        }
    )


def within(
    needs: Needs, limit: int, most: Sizes, pinned: frozenset[str] = frozenset()
) -> Sizes | None:
    """The largest sizes up to `most` whose estimate is at most `limit`; None: not the smallest.

    Windows and batches, which shape bytes, follow from everything but `most.workers`.
    """
    found = None
    for sizes in _rungs(most, pinned):
        if estimate(needs, sizes) > limit:
            break
        found = sizes
    return found and replace(found, workers=min(found.workers, most.workers))


def calmed(needs: Needs, limit: int, sizes: Sizes) -> Sizes:
    """Less of what shapes no byte, queues before callers, until it fits or nothing is left."""
    while estimate(needs, sizes) > limit and (sizes.queue_depth > 1 or sizes.workers > 1):
        if sizes.queue_depth > 1:
            sizes = replace(sizes, queue_depth=sizes.queue_depth - 1)
        else:
            sizes = replace(sizes, workers=sizes.workers - 1)
    return sizes


def _rungs(most: Sizes, pinned: frozenset[str]) -> Iterator[Sizes]:
    """From the least to `most`, no size ever smaller than before.

    What costs most speed where it is small grows first.
    """
    sizes = least(most, pinned)
    yield sizes
    batch = {"batch_rows": most.batch_rows, "batch_tokens": most.batch_tokens}
    window = {"window_rows": most.window_rows, "window_bytes": most.window_bytes}
    for goal in (
        batch,
        {name: -(-size // _WINDOW_PARTS) for name, size in window.items()},
        {"workers": _CALLERS_FIRST},
        window,
        {"queue_depth": most.queue_depth},
        {"workers": most.workers},
    ):
        while (larger := _grown(sizes, goal)) != sizes:
            sizes = larger
            yield sizes


def _grown(sizes: Sizes, goal: Mapping[str, int]) -> Sizes:
    """A step towards the goal: one caller more, or twice as much."""
    now = asdict(sizes)
    steps = {name: now[name] + (1 if name == "workers" else now[name]) for name in goal}
    return replace(
        sizes, **{name: max(now[name], min(steps[name], size)) for name, size in goal.items()}
    )
