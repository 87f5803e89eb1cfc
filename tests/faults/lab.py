"""Where trials take place: the runs, their directories, and what nobody disturbed."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.faults import cases, laws
from tests.faults.cases import Case
from tests.faults.client import ROOT, Client, Ended, Running
from tests.faults.laws import Whole
from tests.faults.shim import Rule, Traced

Entry = dict[str, Any]


@dataclass(frozen=True)
class Profile:
    """An undisturbed run of a case: seconds from its start, and the calls it made."""

    seconds: float
    inferred: int | None
    calls: tuple[Traced, ...]


@dataclass
class Bench:
    """One trial: the directory it writes into, and what came to light.

    `promised`: rows that a run said the next one need not infer.
    """

    case: Case
    directory: Path
    whole: Whole
    old: bool
    attempts: list[Entry] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    inferred: int | None = 0
    promised: int = 0


class Lab:
    """Runs cases in directories of their own below `scratch`."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.inputs = scratch / "inputs"
        self.client = Client(scratch / "runs")
        self._wholes: dict[Case, Whole] = {}
        self._profiles: dict[tuple[Case, bool], Profile] = {}
        self._number = 0
        self.code = _code()

    def whole(self, case: Case) -> Whole:
        """What the case publishes, made by one worker with batches of the usual size."""
        wanted = self._wholes.get(case.result)
        if wanted is None:
            directory = self._new_directory()
            ended = self.client.run(self.arguments(case.result, directory))
            wanted = laws.whole(directory, ended.code)
            if ended.code not in (0, 3) or wanted.files != self._expected(case):
                raise RuntimeError(f"{case}: undisturbed: {ended}, {sorted(wanted.files)}")
            self._wholes[case.result] = wanted
            shutil.rmtree(directory)
        return wanted

    @staticmethod
    def _expected(case: Case) -> set[str]:
        ends = ("", laws.REJECTS, laws.RECEIPT)
        return {f"{name}{end}" for name in cases.names(case) for end in ends}

    def profile(self, case: Case, *, fresh: bool = False) -> Profile:
        """How long the case takes here, and what it does; its result is checked too."""
        found = self._profiles.get((case, fresh))
        if found is None:
            bench = self.bench(case, old=False)
            ended = self.run(bench, fresh=fresh)
            bench.failures += laws.broken_at_the_end(bench.directory, ended, bench.whole)
            if bench.failures:
                raise RuntimeError(f"{case}: undisturbed: {bench.failures}")
            found = Profile(ended.seconds, ended.inferred, ended.trace)
            self._profiles[case, fresh] = found
            self.clear(bench)
        return found

    def bench(self, case: Case, *, old: bool) -> Bench:
        bench = Bench(case, self._new_directory(), self.whole(case), old)
        if old:
            laws.lay_old(bench.directory, cases.names(case))
        return bench

    def arguments(self, case: Case, directory: Path) -> list[str]:
        return cases.arguments(case, directory, self.inputs)

    def start(
        self, bench: Bench, rules: Sequence[Rule] = (), *more: str, fresh: bool = False
    ) -> Running:
        """Calls on anything in the trial's directory and on the directory are noted."""
        arguments = [*self.arguments(bench.case, bench.directory), *more]
        return self.client.start(arguments, rules, traced=f"{bench.directory}*", fresh=fresh)

    def run(
        self, bench: Bench, rules: Sequence[Rule] = (), *more: str, fresh: bool = False
    ) -> Ended:
        return self.note(
            bench, self.client.finish(self.start(bench, rules, *more, fresh=fresh)), rules
        )

    @staticmethod
    def note(bench: Bench, ended: Ended, rules: Sequence[Rule] = (), **more: Any) -> Ended:
        """Keep for the ledger how a run ended."""
        entry: Entry = {"code": ended.code, "seconds": round(ended.seconds, 3)} | more
        if rules:
            entry |= {"rules": [str(rule) for rule in rules], "fired": ended.fired}
        if ended.inferred is None or bench.inferred is None:
            bench.inferred = None
        else:
            entry["inferred"] = ended.inferred
            bench.inferred += ended.inferred
        bench.attempts.append(entry)
        bench.promised = laws.promised(ended) or bench.promised
        return ended

    def check_meanwhile(self, bench: Bench) -> None:
        bench.failures += laws.broken_meanwhile(bench.directory, bench.whole, old=bench.old)

    def check_next_run(self, bench: Bench, *, fresh: bool = False) -> Ended:
        """The same command once more, undisturbed, does all that is left to do."""
        # What was finished already may be done again from the start.
        promised = 0 if laws.published(bench.directory, bench.whole) else bench.promised
        ended = self.run(bench, fresh=fresh)
        broken = laws.broken_at_the_end(bench.directory, ended, bench.whole)
        if not broken:
            resumed = laws.resumed(bench.directory, bench.whole)
            bench.attempts[-1]["resumed"] = resumed
            if resumed < promised:
                broken = [f"{promised} rows were said to be kept, {resumed} were"]
        bench.failures += broken
        self._measure(bench.case, ended, fresh=fresh)
        return ended

    def _measure(self, case: Case, ended: Ended, *, fresh: bool) -> None:
        """How long a case takes changes with what else the machine does."""
        found = self._profiles.get((case, fresh))
        if found is not None:
            seconds = (found.seconds + ended.seconds) / 2
            self._profiles[case, fresh] = replace(found, seconds=seconds)

    def clear(self, bench: Bench) -> None:
        """Throw the files away, unless they show a failure."""
        if not bench.failures:
            shutil.rmtree(bench.directory)

    def _new_directory(self) -> Path:
        while True:
            self._number += 1
            directory = self.scratch / f"trial{self._number}"
            if not directory.exists():
                directory.mkdir(parents=True)
                return directory

    def close(self) -> None:
        self.client.close()


def _code() -> str:
    """What is being tested: a digest of the package's source."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "batchpredict").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def chooser(kind: str, seed: int, number: int) -> random.Random:
    """What decides everything of a trial that is not the machine's doing."""
    return random.Random(f"{kind} {seed} {number}")
