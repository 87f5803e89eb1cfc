"""The long part of the fault tests, in pieces.

    python -m tests.faults --kills 500 --terms 200 --seed 1 --ledger faults.jsonl
    python -m tests.faults --ledger faults.jsonl --summary
    python -m tests.faults --seed 1 --only kill:37

Each kind has a number of trials to reach; those of this seed that are in the ledger already count.
Of kills and terms only trials in which a signal found the run alive count. `--only` repeats one
trial and keeps its files where it fails; the instants of signals are the same shares of a run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import failures, ledger, trials
from tests.faults.lab import Entry, Lab, chooser
from tests.faults.trials import Trial

# Kind of trial, and the option that says how many.
KINDS: dict[str, tuple[str, Trial]] = {
    "kill": ("kills", trials.kill),
    "terminate": ("terms", trials.terminate),
    "interrupt": ("ints", trials.interrupt),
    "twice": ("twices", trials.twice),
    "transition": ("transitions", trials.transition),
    "sweep": ("sweeps", trials.sweep),
    "slices": ("slices", trials.slices),
    "compete": ("races", trials.compete),
    "fail": ("fails", failures.fail),
    "full": ("fulls", failures.full),
    "bear": ("bears", failures.bear),
    "stall": ("stalls", failures.stall),
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for kind, (option, trial) in KINDS.items():
        text = (trial.__doc__ or kind).splitlines()[0]
        parser.add_argument(f"--{option}", type=int, default=0, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ledger", type=Path, metavar="FILE")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="for runs; failures stay there")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="repeat one trial")
    parser.add_argument("--summary", action="store_true", help="print totals and failures")
    return parser.parse_args()


def attempt(lab: Lab, kind: str, seed: int, number: int) -> Entry:
    """One trial; what the harness itself stumbles over is a failure like any other."""
    begin = time.monotonic()
    head: Entry = {"kind": kind, "seed": seed, "number": number, "code": lab.code}
    try:
        entry = KINDS[kind][1](lab, chooser(kind, seed, number), number)
    except (TimeoutError, RuntimeError, PermissionError) as error:
        entry = {"case": None, "attempts": [], "failures": [f"{type(error).__name__}: {error}"]}
    return head | entry | {"took": round(time.monotonic() - begin, 3)}


def counts(entry: Entry) -> bool:
    """Whether a trial is one of those that were asked for: a signal must have found a run."""
    return all(entry.get(name, 1) for name in ("kills", "stops")) or bool(entry["failures"])


def campaign(lab: Lab, options: argparse.Namespace) -> int:
    """Trials of all kinds in turn until each has its number, or time is up; how many failed."""
    deadline = time.monotonic() + options.seconds
    done = dict.fromkeys(KINDS, 0)
    following = dict.fromkeys(KINDS, 0)
    for entry in ledger.read(options.ledger) if options.ledger else ():
        if entry["seed"] == options.seed:
            done[entry["kind"]] += counts(entry)
            following[entry["kind"]] = max(following[entry["kind"]], entry["number"] + 1)
    wanted = {kind: getattr(options, option) for kind, (option, _) in KINDS.items()}
    failed = 0
    while time.monotonic() < deadline:
        left = {kind: wanted[kind] - done[kind] for kind in KINDS if wanted[kind] > done[kind]}
        if not left:
            break
        # The kind that is furthest behind, so that a piece of a campaign has something of each.
        kind = max(left, key=lambda kind: left[kind] / wanted[kind])
        entry = attempt(lab, kind, options.seed, following[kind])
        following[kind] += 1
        done[kind] += counts(entry)
        failed += bool(entry["failures"])
        if options.ledger:
            ledger.append(options.ledger, entry)
        if entry["failures"]:
            print(json.dumps(entry), flush=True)
    return failed


def main() -> int:
    options = _options()
    if options.summary:
        print(ledger.summary(ledger.read(options.ledger)))
        return 0
    scratch = options.scratch or Path(tempfile.mkdtemp(prefix="faults."))
    print(f"scratch: {scratch}", flush=True)
    lab = Lab(scratch)
    try:
        if options.only:
            kind, number = options.only.split(":")
            entry = attempt(lab, kind, options.seed, int(number))
            print(json.dumps(entry, indent=2))
            return bool(entry["failures"])
        return bool(campaign(lab, options))
    finally:
        lab.close()


if __name__ == "__main__":
    sys.exit(main())
