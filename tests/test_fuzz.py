"""Some fuzzed cases of every reader, in every run; `python -m tests.fuzz.run` runs many more."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from batchpredict.errors import InputInvalid
from tests.fuzz import harness

READERS = {"csv": 250, "jsonl": 250, "json": 250, "avro": 250, "parquet": 350}
FILES_OF_OURS = {"journal": 400, "notes": 200, "receipt": 200}
TARGETS = READERS | FILES_OF_OURS


class _TwoLines(InputInvalid):
    def __str__(self) -> str:
        return "a\nb"


class _Odd:
    """Fails in one way for each case."""

    def case(self, rng: random.Random) -> int:
        return rng.randrange(1 << 30)

    def check(self, case: int, directory: Path) -> None:
        raise _TwoLines


class _Deadly(_Odd):
    def check(self, case: int, directory: Path) -> None:
        import os
        import signal

        (directory / "file").write_text("x")
        if case % 4 == 0:
            os.kill(os.getpid(), signal.SIGSEGV)
        if case % 4 == 1:
            bytearray(8 << 30)
        if case % 4 == 2:
            raise InputInvalid("as it should be")


@pytest.mark.parametrize("name", TARGETS)
def test_no_case_is_a_finding(name: str) -> None:
    result = harness.run(name, range(TARGETS[name]), memory=1 << 30)
    assert [f"{name}:{finding['seed']} {finding['trace']}" for finding in result.findings] == []
    assert result.read + result.refused == TARGETS[name]
    assert result.read > TARGETS[name] // 10  # else nothing but its refusals is tested


def test_a_case_can_be_made_again() -> None:
    for name in TARGETS:
        target = harness.all_targets()[name]
        one, other = (target.case(harness.rng_of(name, 7)) for _ in range(2))
        assert one == other
        assert one.data == other.data


def _with(monkeypatch: pytest.MonkeyPatch, target: harness.Target) -> None:
    monkeypatch.setattr(harness, "all_targets", lambda: {"odd": target})


def test_an_error_is_a_printable_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, _Odd())
    result = harness.run("odd", range(3))
    assert [finding["what"] for finding in result.findings] == 3 * [
        "an error's text is not one line"
    ]


def test_a_death_is_named_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, _Deadly())
    result = harness.run("odd", range(20), memory=1 << 30)
    cases = [_Deadly().case(harness.rng_of("odd", seed)) % 4 for seed in range(20)]
    found: dict[int, Any] = {finding["seed"]: finding["what"] for finding in result.findings}
    assert found == {
        seed: "killed by SIGSEGV" if kind == 0 else "MemoryError: ''"
        for seed, kind in enumerate(cases)
        if kind in (0, 1)
    }
    json.dumps(result.findings)
