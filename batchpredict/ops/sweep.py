"""Find the fastest of several candidates in a bounded time, on a machine whose speed drifts.

Passes are interleaved, each group of candidates between two passes of the default, and a
candidate counts by its ratio to those two; the worse half is dropped round by round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from batchpredict.run.scorer import Tuning

# Candidates between two passes of the default.
_GROUP = 3
# Rounds after which more would tell little.
_ROUNDS = 12
# Gains below this are not worth a setting, however sure they are.
_LEAST_GAIN = 0.02


@dataclass(frozen=True)
class Sizes:
    """A candidate: shapes of the batches, and callers of the session side by side."""

    tuning: Tuning
    workers: int


@dataclass(frozen=True)
class Pass:
    """One run over the sample. `seconds`: wall; `cpu_seconds`: of the whole process."""

    rows: int
    seconds: float
    cpu_seconds: float


# None: there was no time left for it.
Measure = Callable[[Sizes], Pass | None]


@dataclass(frozen=True)
class Measured:
    """A candidate's medians. `ratio`: its rows per second by the default's beside it (1: equal).

    `low`, `high`: the smallest and largest ratio.
    """

    sizes: Sizes
    passes: int
    rows_per_second: float
    rows_per_cpu_second: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranking:
    """Candidates with the default, best first: the last ones standing, then those dropped.

    `winner`: the default's sizes where nothing beats it by more than `noise` (a share);
    None where there was no time to tell. `unmeasured`: candidates there was no time for.
    """

    measured: tuple[Measured, ...]
    winner: Sizes | None
    noise: float
    unmeasured: tuple[Sizes, ...]


class _Book:
    """What every candidate has shown so far."""

    def __init__(self, default: Sizes) -> None:
        self.default = default
        self.passes: dict[Sizes, list[Pass]] = {}
        self.ratios: dict[Sizes, list[float]] = {default: []}

    def enter(self, sizes: Sizes, found: Pass) -> None:
        self.passes.setdefault(sizes, []).append(found)

    def compare(self, group: Sequence[Sizes], before: Pass, after: Pass | None) -> None:
        """Count the latest pass of each in `group` against the default's around them."""
        beside = [_rate(before)] if after is None else [_rate(before), _rate(after)]
        for sizes in group:
            ratio = _rate(self.passes[sizes][-1]) * len(beside) / sum(beside)
            self.ratios.setdefault(sizes, []).append(ratio)
        if after is not None:
            self.ratios[self.default].append(_rate(after) / _rate(before))

    def ratio(self, sizes: Sizes) -> float:
        return median(self.ratios[sizes])

    def measured(self, sizes: Sizes) -> Measured:
        passes = self.passes[sizes]
        ratios = self.ratios[sizes] or [1.0]
        return Measured(
            sizes,
            len(passes),
            median(map(_rate, passes)),
            median(found.rows / max(found.cpu_seconds, 1e-9) for found in passes),
            1.0 if sizes == self.default else median(ratios),
            min(ratios),
            max(ratios),
        )

    def noise(self, passes: int) -> float:
        """The share by which two medians of `passes` passes may differ by chance.

        Three standard errors, for it is the best of many that is judged; the deviation is taken
        from how the default differs from itself.
        """
        own = self.ratios[self.default]
        if not own:
            return math.inf
        deviation = 1.5 * median(abs(ratio - 1) for ratio in own)
        return max(_LEAST_GAIN, 3 * deviation / math.sqrt(max(passes, 1)))


def _rate(found: Pass) -> float:
    return found.rows / max(found.seconds, 1e-9)


def sweep(
    default: Sizes,
    candidates: Sequence[Sizes],
    variants: Callable[[Sizes], Sequence[Sizes]],
    measure: Measure,
) -> Ranking:
    """Measure until `measure` finds no time left, or enough is known.

    `variants`: further candidates near the best one, which join after the second round.
    """
    book = _Book(default)
    waiting = [sizes for sizes in candidates if sizes != default]
    known = [default, *waiting]
    alive = waiting
    for number in range(_ROUNDS):
        # Another order each round, so that no candidate always follows the same one.
        turn = number % max(len(alive), 1)
        if not _round(book, [*alive[turn:], *alive[:turn]], measure):
            break
        if number == 0:  # one pass may have met with a hiccup
            continue
        alive = _best(book, alive, max(2, -(-len(alive) // 2)))
        if number == 1:
            best = alive[0] if alive and book.ratio(alive[0]) > 1 else default
            further = [sizes for sizes in variants(best) if sizes not in known]
            known += further
            alive += further
    return _ranking(book, known, alive)


def _round(book: _Book, candidates: Sequence[Sizes], measure: Measure) -> bool:
    """One pass of each; False where the time ran out."""
    before = measure(book.default)
    if before is None:
        return False
    book.enter(book.default, before)
    for start in range(0, len(candidates), _GROUP):
        done: list[Sizes] = []
        for sizes in candidates[start : start + _GROUP]:
            found = measure(sizes)
            if found is None:
                break
            book.enter(sizes, found)
            done.append(sizes)
        after = measure(book.default)
        if after is not None:
            book.enter(book.default, after)
        book.compare(done, before, after)
        if after is None or len(done) < len(candidates[start : start + _GROUP]):
            return False
        before = after
    return True


def _best(book: _Book, candidates: Sequence[Sizes], count: int) -> list[Sizes]:
    return sorted(candidates, key=book.ratio, reverse=True)[:count]


def _ranking(book: _Book, known: Sequence[Sizes], alive: Sequence[Sizes]) -> Ranking:
    default = book.default
    seen = [sizes for sizes in known if sizes in book.passes]
    standing = {default, *alive}
    measured = [book.measured(sizes) for sizes in seen]
    measured.sort(key=lambda found: (found.sizes not in standing, -found.ratio))
    unmeasured = tuple(sizes for sizes in known if sizes not in book.passes)
    # One pass proves nothing.
    judged = [found for found in measured if found.sizes in standing and found.passes > 1]
    rivals = [found for found in judged if found.sizes != default]
    if known != [default] and not rivals:
        return Ranking(tuple(measured), None, book.noise(1), unmeasured)
    best = max(rivals, key=lambda found: found.ratio, default=None)
    noise = book.noise(best.passes if best else 1)
    better = best is not None and best.ratio > 1 + noise
    return Ranking(tuple(measured), best.sizes if best and better else default, noise, unmeasured)
