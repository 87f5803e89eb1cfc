"""A short fuzz of what reads a model's files; the long one is tests/fuzz/run.py.

Target `session` is not among these: a crash there is onnxruntime's, and which graphs crash it
changes with its version.
"""

from __future__ import annotations

import pytest

from tests.fuzz import harness

# A part that no long run has begun with, so that every test run adds to it.
_FIRST = 1 << 40


@pytest.mark.parametrize(
    ("target", "cases"), [("graph", 1500), ("manifest", 500), ("sidefiles", 250), ("tuning", 300)]
)
def test_no_case_is_a_finding(target: str, cases: int) -> None:
    result = harness.run(target, range(_FIRST, _FIRST + cases))
    assert result.findings == []
    assert result.read > cases / 20
    assert result.refused > cases / 20
