"""What must hold between two runs, and after the last one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.client import Ended

OLD = b"what was here before\n"
REJECTS, RECEIPT = ".rejects.jsonl", ".receipt.json"
# What a run that did not end well may leave beside an output, by its whole name.
_LEFT = re.compile(
    r"\.(?P<draft>.+)\.[0-9a-f]{8}\.part|\.(?P<hidden>.+)\.(journal|inflight)"
    r"|(?P<failed>.+)\.failed\.(json|rejects\.jsonl)"
)
# Of a receipt, what two undisturbed runs agree on, wherever they wrote.
_SAME = ("exit_code", "counts", "model", "tool")


@dataclass(frozen=True)
class Whole:
    """What an undisturbed run publishes. `digests`: of the outputs and rejects files, by name."""

    code: int
    digests: Mapping[str, str]
    receipts: Mapping[str, dict[str, Any]]

    @property
    def files(self) -> set[str]:
        return {*self.digests, *self.receipts}


def lay_old(directory: Path, outputs: Iterable[str]) -> None:
    """Files of an earlier run, which stay until there are new ones."""
    for name in outputs:
        for end in ("", REJECTS, RECEIPT):
            (directory / f"{name}{end}").write_bytes(OLD)


def whole(directory: Path, code: int) -> Whole:
    digests, receipts = {}, {}
    for path in sorted(directory.iterdir()):
        if path.name.endswith(RECEIPT):
            receipts[path.name] = json.loads(path.read_bytes())
        else:
            digests[path.name] = _digest(path)
    return Whole(code, digests, receipts)


def broken_at_the_end(directory: Path, ended: Ended, wanted: Whole) -> list[str]:
    """Laws that do not hold once a run has ended undisturbed."""
    found = []
    if ended.code != wanted.code:
        found.append(f"exit code {ended.code}, not {wanted.code}: {ended.stderr.strip()[-600:]}")
    found += _of_stderr(ended)
    present = {path.name for path in directory.iterdir()}
    found += [f"left behind: {name}" for name in sorted(present - wanted.files)]
    found += [f"missing: {name}" for name in sorted(wanted.files - present)]
    for name, digest in wanted.digests.items():
        if name in present and _digest(directory / name) != digest:
            found.append(f"{name} differs from the undisturbed run's")
    for name, receipt in wanted.receipts.items():
        if name in present:
            found += _of_receipt(directory / name, receipt, wanted)
    return found


def _of_receipt(path: Path, wanted: dict[str, Any], whole: Whole) -> list[str]:
    try:
        receipt = json.loads(path.read_bytes())
    except ValueError as error:
        return [f"{path.name} is no receipt: {error}"]
    found = [
        f"{path.name}: {name} is {receipt.get(name)}, not {wanted[name]}"
        for name in _SAME
        if receipt.get(name) != wanted[name]
    ]
    output = path.name.removesuffix(RECEIPT)
    claimed = (receipt.get("output") or {}).get("sha256")
    if claimed != whole.digests[output]:
        found.append(f"{path.name} names another output: {claimed}")
    codes = receipt["rejects"]["codes"], wanted["rejects"]["codes"]
    if codes[0] != codes[1]:
        found.append(f"{path.name}: rejects {codes[0]}, not {codes[1]}")
    return found


def broken_meanwhile(directory: Path, wanted: Whole, *, old: bool) -> list[str]:
    """Laws that do not hold after a run that was killed or failed.

    Each final name holds what was there before or what the undisturbed run publishes, and a new
    receipt stands beside a new output only.
    """
    found = []
    present = {path.name: path for path in directory.iterdir()}
    for name, digest in wanted.digests.items():
        if name not in present:
            found += [f"{name}: the old file has gone"] if old else []
        elif _digest(present[name]) not in (digest, _OLD_DIGEST):
            found.append(f"{name} is neither the old file nor the new one")
    for name, receipt in wanted.receipts.items():
        if name in present and present[name].read_bytes() != OLD:
            output = name.removesuffix(RECEIPT)
            fresh = output in present and _digest(present[output]) == wanted.digests[output]
            found += _of_receipt(present[name], receipt, wanted)
            found += [] if fresh else [f"{name} is new, its output is not"]
    for name in present.keys() - wanted.files:
        if not _may_be_left(name, wanted):
            found.append(f"left behind: {name}")
    return found


def published(directory: Path, wanted: Whole) -> bool:
    """Whether everything is there, the receipts too, though the run did not end well."""
    paths = {name: directory / name for name in wanted.files}
    return all(path.exists() for path in paths.values()) and all(
        paths[name].read_bytes() != OLD for name in wanted.receipts
    )


def promised(ended: Ended) -> int:
    """Rows that a run which was stopped says it has left for the next one."""
    said = re.search(r"([0-9,]+) rows? scored and kept", ended.stdout + ended.stderr)
    return int(said[1].replace(",", "")) if said else 0


def resumed(directory: Path, wanted: Whole) -> int:
    """Rows that the runs which published had from runs before them."""
    receipts = [json.loads((directory / name).read_bytes()) for name in wanted.receipts]
    return sum(receipt["resumed"]["rows"] for receipt in receipts)


def _may_be_left(name: str, wanted: Whole) -> bool:
    match = _LEFT.fullmatch(name)
    if not match:
        return False
    outputs = {name.removesuffix(RECEIPT) for name in wanted.receipts}
    owner = match["hidden"] or match["failed"]
    if owner:
        return owner in outputs
    known = wanted.files | {f"{name}.failed{end}" for name in outputs for end in (".json", REJECTS)}
    return match["draft"] in known


def _of_stderr(ended: Ended) -> list[str]:
    told = ended.stderr + ended.stdout
    return [f"a traceback: {told[-4000:]}"] if re.search("Traceback|Fatal Python", told) else []


def broken_by_failing(ended: Ended, codes: Iterable[int], *, silent: bool = False) -> list[str]:
    """Laws of a run that had to fail: one of these exit codes, one line that says why.

    `silent`: it may have had no time to say so.
    """
    found = _of_stderr(ended)
    if ended.code not in codes:
        found.append(f"exit code {ended.code}, not one of {sorted(codes)}: {_tail(ended)}")
    # The second: before there is a log.
    lines = re.findall(r"^(?:[-0-9]+ [:0-9]+ ERROR |batchpredict: )", ended.stderr, re.MULTILINE)
    if ended.code > 3 and len(lines) != 1 and not (silent and not lines):
        found.append(f"{len(lines)} lines of errors: {_tail(ended)}")
    return found


def _tail(ended: Ended) -> str:
    return ended.stderr.strip()[-600:]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


_OLD_DIGEST = hashlib.sha256(OLD).hexdigest()
