"""What `tune` found, for people: a table, a curve of characters, an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from batchpredict.counting import count
from batchpredict.ops import compare
from batchpredict.ops.sweep import Measured, Sizes
from batchpredict.ops.tune import Found

# Of the curve of characters: lines, and columns between two sizes.
_LINES = 10
_STEP = 8
_MARKS = "ox+*#@"
# Of the SVG file, in pixels.
_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 130, 50, 60
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2")


def report(found: Found) -> str:
    """Everything there is to say, in lines."""
    parts = ["\n".join(_about(found)), table(found)]
    if len(_sizes_on_x(found)) > 1:
        parts.append(curve(found))
    if isinstance(found.precisions, str):
        parts.append(f"the precisions are not compared: {found.precisions}")
    else:
        parts.append(compare.table(found.precisions))
    parts.append(verdict(found))
    return "\n\n".join(parts)


def _about(found: Found) -> list[str]:
    read = count(found.read, "row")
    lines = [
        f"{found.model} ({found.key.provider}, precision {found.key.precision}) on "
        f"{found.file}: {read} read, {found.sampled:,} of them measured with, "
        f"{found.seconds:.0f} s"
    ]
    if found.truncated:
        lines.append(
            f"{found.truncated:,} of {read} ({found.truncated / found.read:.1%}) are longer "
            f"than the model's maximum of {found.max_length} tokens and are truncated"
        )
    elif found.max_length is not None:
        lines.append(f"no row is longer than the model's maximum of {found.max_length} tokens")
    if found.unscorable:
        lines.append(f"{found.unscorable:,} of {read} cannot be scored")
    if found.duplicates:
        lines.append(
            f"{found.duplicates:,} of {read} ({found.duplicates / found.read:.1%}) or "
            "more have the model input of another row and are not inferred again"
        )
    return lines


def verdict(found: Found) -> str:
    """One line: what is best, and by how much."""
    ranking, best = found.ranking, found.sizes
    sizes = ", ".join(f"{name} {size}" for name, size in best.items())
    if ranking.winner is None:
        return "there was not enough time to tell; give more with --seconds"
    if ranking.winner == found.default:
        return f"nothing beats the default ({sizes}) by more than the noise of {_noise(found)}"
    gain = next(m.ratio for m in ranking.measured if m.sizes == ranking.winner)
    return f"the best is {sizes}: {gain:.2f} times the default, noise {_noise(found)}"


def _noise(found: Found) -> str:
    return f"{found.ranking.noise:.0%}"


def table(found: Found) -> str:
    """A line per candidate, best first, those dropped early last."""
    tokens = found.by_tokens
    heads = ["", "batch_tokens", "batch_rows", "workers", "rows/s", "rows/CPU s"]
    heads += ["x default", "from", "to", "passes", ""]
    lines = [heads]
    for number, entry in enumerate(found.ranking.measured, 1):
        tuning = entry.sizes.tuning
        remarks = [
            what
            for what, sizes in (("default", found.default), ("best", found.ranking.winner))
            if entry.sizes == sizes
        ]
        lines.append(
            [
                str(number), str(tuning.batch_tokens), str(tuning.batch_rows),
                str(entry.sizes.workers), _rate(entry.rows_per_second),
                _rate(entry.rows_per_cpu_second), f"{entry.ratio:.2f}", f"{entry.low:.2f}",
                f"{entry.high:.2f}", str(entry.passes), ", ".join(remarks),
            ]
        )  # fmt: skip
    if not tokens:
        lines = [[line[0], *line[2:]] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([*map(str.rjust, line[:-1], widths), line[-1]]).rstrip() for line in lines]
    if found.alike:
        text.append(f"{found.alike} more make the same batches of these rows as one of them")
    if found.ranking.unmeasured:
        text.append(f"no time was left for {len(found.ranking.unmeasured)} more")
    return "\n".join(text)


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 or not rate else f"{rate:.1f}"


def _x_of(found: Found, sizes: Sizes) -> int:
    return sizes.tuning.batch_tokens if found.by_tokens else sizes.tuning.batch_rows


def _sizes_on_x(found: Found) -> list[int]:
    return sorted({_x_of(found, entry.sizes) for entry in _drawn(found)})


def _drawn(found: Found) -> Sequence[Measured]:
    """Candidates of one curve: those with the default's cap on rows."""
    rows = found.default.tuning.batch_rows
    return [
        entry
        for entry in found.ranking.measured
        if not found.by_tokens or entry.sizes.tuning.batch_rows == rows
    ]


def _speed(found: Found, entry: Measured) -> float:
    """Rows per second as if all candidates had been measured while the machine was equally fast."""
    own = next(m for m in found.ranking.measured if m.sizes == found.default)
    return own.rows_per_second * entry.ratio


def _x_name(found: Found) -> str:
    return "batch_tokens" if found.by_tokens else "batch_rows"


def curve(found: Found) -> str:
    """Rows per second over the size of batches, a mark per number of callers."""
    across, drawn = _sizes_on_x(found), _drawn(found)
    callers = sorted({entry.sizes.workers for entry in drawn})
    top = max(_speed(found, entry) for entry in drawn) or 1.0
    grid = [[" "] * (_STEP * len(across)) for _ in range(_LINES + 1)]
    for entry in drawn:
        line = _LINES - round(_LINES * _speed(found, entry) / top)
        column = _STEP * across.index(_x_of(found, entry.sizes)) + _STEP // 2
        column += callers.index(entry.sizes.workers) % 3  # side by side where they meet
        grid[line][column] = _MARKS[callers.index(entry.sizes.workers) % len(_MARKS)]
    label = len(_rate(top))
    lines = ["rows/s"]
    for number, row in enumerate(grid):
        shown = _rate(top * (_LINES - number) / _LINES) if number % 5 == 0 else ""
        lines.append(f"{shown:>{label}} |{''.join(row)}".rstrip())
    lines.append(f"{'':>{label}} +{'-' * (_STEP * len(across))}")
    lines.append(f"{'':>{label}}  {''.join(f'{x:^{_STEP}}' for x in across)}".rstrip())
    legend = ", ".join(f"{_MARKS[i % len(_MARKS)]} workers {w}" for i, w in enumerate(callers))
    lines.append(f"{'':>{label}}  {_x_name(found)}; {legend}")
    return "\n".join(lines)


def svg(found: Found) -> str:
    """The curve as an SVG document."""
    across = _sizes_on_x(found)
    callers = sorted({entry.sizes.workers for entry in _drawn(found)})
    top = _round_up(max((_speed(found, entry) for entry in _drawn(found)), default=1.0))
    title = f"{found.model}, {found.key.provider}, precision {found.key.precision}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{_xml(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_WIDTH / 2, 26, title, "middle", 15),
        *_axes(across, top, _x_name(found)),
    ]
    for number, workers in enumerate(callers):
        colour = _COLOURS[number % len(_COLOURS)]
        mine = [entry for entry in _drawn(found) if entry.sizes.workers == workers]
        parts += _line(found, mine, (across, top), colour)
        y = _TOP + 14 + 20 * number
        parts.append(f'<circle cx="{_WIDTH - _RIGHT + 20}" cy="{y - 4}" r="4" fill="{colour}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 30, y, f"workers {workers}", "start"))
    return "\n".join([*parts, "</svg>", ""])


def _axes(across: Sequence[int], top: float, name: str) -> list[str]:
    left, right, bottom = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for part in range(5):
        y = _y(top * part / 4, top)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#dddddd"/>')
        parts.append(_text(left - 8, y + 4, _rate(top * part / 4), "end"))
    parts += [_text(_x(size, across), bottom + 20, str(size), "middle") for size in across]
    parts.append(f'<path d="M{left} {_TOP}V{bottom}H{right}" stroke="#333333" fill="none"/>')
    parts.append(_text((left + right) / 2, _HEIGHT - 14, name, "middle", 13))
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="20" y="{middle}" text-anchor="middle" font-size="13" '
        f'transform="rotate(-90 20 {middle})">rows per second</text>'
    )
    return parts


def _line(
    found: Found, entries: Sequence[Measured], scale: tuple[Sequence[int], float], colour: str
) -> list[str]:
    """A line with a point per candidate; the winner's has a ring."""
    across, top = scale
    points = sorted((_x_of(found, e.sizes), _speed(found, e), e.sizes) for e in entries)
    places = [(_x(x, across), _y(y, top), sizes) for x, y, sizes in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for x, y, sizes in places:
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        if sizes == found.ranking.winner:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="none" stroke="{colour}"/>')
            parts.append(_text(x, y - 14, "best", "middle"))
    return parts


def _x(size: int, across: Sequence[int]) -> float:
    """Sizes stand at equal distances, as powers of two do on a logarithmic axis."""
    width = _WIDTH - _RIGHT - _LEFT
    return _LEFT + width * (across.index(size) + 0.5) / len(across)


def _y(speed: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * speed / top


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 8 or 10 times a power of ten."""
    power = 1.0
    while power * 10 < value:
        power *= 10
    while power > value > 0:
        power /= 10
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value)


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="#333333">{_xml(text)}</text>'
    )


def _xml(text: str) -> str:
    """Escaped; what XML 1.0 has no place for (controls, surrogates) replaced."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
