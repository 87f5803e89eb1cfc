"""Render benchmarks/RESULTS.md from what run.py left.

python benchmarks/report.py [--work DIR] [--output FILE] [--quick]

Ratios are taken within a round, or over medians where contenders got different runs; a cell shows
the median and, in brackets, the lowest and highest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from prepare import WORK
from sections import SECTIONS

Results = dict[str, dict[str, Any]]
RATES = ("wall", "cpu", "scoring")


@dataclass(frozen=True)
class Target:
    """A line of targets.txt, which says what its fields mean."""

    work: str
    figure: str
    section: str
    ours: str
    others: tuple[str, ...]
    metrics: tuple[str, str]
    relation: str
    bound: float


def read_targets() -> list[Target]:
    lines = Path(__file__).with_name("targets.txt").read_text(encoding="utf-8").splitlines()
    return [_target(line) for line in lines if not line.startswith("#")]


def _target(line: str) -> Target:
    work, figure, section, ours, others, metric, bound = map(str.strip, line.split("|"))
    names = tuple(name.strip() for name in others.split(",") if name.strip())
    first, _, second = metric.partition(":")
    relation, value = bound.split()
    metrics = (first, second or first)
    return Target(work, figure, section, ours, names, metrics, relation, float(value))


def per_run(result: dict[str, Any], name: str, metric: str) -> list[float]:
    """Rates as rows per second, peaks in GB, else as measured; empty where there is none."""
    contender = result["contenders"].get(name, {"figures": {}})
    if metric == "agreement":
        return [] if contender.get("agreement") is None else [contender["agreement"]]
    values = contender["figures"].get("wall" if metric == "seconds" else metric, [])
    if metric in RATES:
        return [contender["rows"] / value for value in values]
    return [value / 1e9 for value in values] if metric == "peak" else list(values)


def ratios(target: Target, result: dict[str, Any]) -> list[float]:
    """One per run, against the best of the others in the same round."""
    ours = per_run(result, target.ours, target.metrics[0])
    if not target.others:
        return ours
    others = [per_run(result, name, target.metrics[1]) for name in target.others]
    best = [max(values) for values in zip(*filter(None, others), strict=True)]
    return [a / b for a, b in zip(ours, best, strict=False)]


def spread(values: Sequence[float], form: str) -> str:
    low, middle, high = (format(f(values), form) for f in (min, median, max))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def rate(values: Sequence[float]) -> str:
    return spread(values, ",.1f" if median(values) < 1000 else ",.0f") if values else ""


def acceptance(results: Results) -> list[str]:
    lines = ["| work | figure | measured | target | reached |", "|---|---|---|---|---|"]
    for target in read_targets():
        measured, verdict = "not measured", ""
        if target.section in results and (found := ratios(target, results[target.section])):
            measured, middle = spread(found, ".3f"), median(found)
            holds = middle >= target.bound if target.relation == ">=" else middle <= target.bound
            verdict = "yes" if holds else "**no**"
        if target.section in results and results[target.section]["quick"]:
            verdict = "too few rows"
        bound = f"{target.relation} {target.bound:g}"
        lines.append(f"| {target.work} | {target.figure} | {measured} | {bound} | {verdict} |")
    return lines


def section_lines(name: str, result: dict[str, Any]) -> list[str]:
    reference = next(iter(result["contenders"]))
    lines = [f"## {result['title']}", "", f"`run.py {name}`, {result['rounds']} rounds.", ""]
    lines += [
        f"| | rows | seconds | rows/s | rows per CPU s | scoring stage, rows per CPU s | peak MB |"
        f" rows/s of {reference} ÷ this | labels as {reference} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    wall = per_run(result, reference, "wall")
    for contender, entry in result["contenders"].items():
        if entry["failure"]:
            lines.append(f"| {contender} | {entry['rows']:,} | {entry['failure']} | | | | | | |")
            continue
        rates = {m: per_run(result, contender, m) for m in RATES}
        faster = [a / b for a, b in zip(wall, rates["wall"], strict=False)]
        cells = [
            f"{entry['rows']:,}",
            spread(entry["figures"]["wall"], ".2f"),
            *(rate(rates[metric]) for metric in RATES),
            spread([value / 1e6 for value in entry["figures"]["peak"]], ",.0f"),
            "" if contender == reference or not faster else spread(faster, ".2f"),
            "" if entry["agreement"] is None else f"{entry['agreement']:.4f}",
        ]
        lines.append(f"| {contender} | {' | '.join(cells)} |")
    for sweep, found in result["sweeps"].items():
        lines += ["", f"Sweep {sweep.removesuffix('-best')}: `{json.dumps(found)}`"]
    return [*lines, ""]


def circumstances(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    features = ", ".join(machine["features"])
    real = "real" if result["real_models"] else "random weights of the same shape"
    lines = [
        f"- {result['date']}; {machine['cores']} cores of {machine['cpu']} (family and model"
        f" {machine['family_model']}; {features}), {machine['memory_gib']} GiB, Linux"
        f" {machine['kernel']}",
        f"- MiniLM: {real}; DistilBERT shape: random weights; trees: `examples/models/delays`",
    ]
    lines += [f"- {group}: {found}" for group, found in result["versions"].items()]
    if result["quick"]:
        lines.insert(0, "- **Quick run: too few rows for its figures to mean anything.**")
    return lines


def render(results: Results) -> str:
    latest = max(results.values(), key=lambda result: result["date"])
    lines = [
        "# Results",
        "",
        "Made by `report.py`; do not edit. Whole processes from start to written file, contenders",
        "interleaved, every run's labels compared. Median (lowest to highest); ratios are taken",
        "within a round. CPU seconds and memory are those of the whole process tree, memory as",
        "the sum of proportional set sizes. Scoring stage: CPU seconds from cutting batches to",
        "scattering scores; for the limit those of its callers.",
        "",
        *circumstances(latest),
        "",
        "## Acceptance",
        "",
        *acceptance(results),
        "",
    ]
    for name, result in results.items():
        lines += section_lines(name, result)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    parser.add_argument("--quick", action="store_true", help="of the results of run.py --quick")
    options = parser.parse_args()
    folder = options.work / ("results-quick" if options.quick else "results")
    found = {name: folder / f"{name}.json" for name in SECTIONS}
    results = {name: json.loads(p.read_text()) for name, p in found.items() if p.exists()}
    if not results:
        parser.error(f"no results in {folder}; run benchmarks/run.py first")
    options.output.write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
