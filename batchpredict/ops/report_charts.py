"""The charts of the report, drawn by pygal, as SVG without script, styles or comments.

Shapes have pygal's classes (`series serie-0`, `axis x`, `guide line`, …); the page's style sheet
gives them colours. Sizes are in the pixels of a narrow screen.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pygal
from pygal.style import Style

from batchpredict.ops.display import number, plain

# What pygal looks for its plugins with lacks find_spec: Python would warn at every later import of
# a module that is not there.
sys.meta_path[:] = [each for each in sys.meta_path if hasattr(each, "find_spec")]

_SVG = "{http://www.w3.org/2000/svg}"
_DROPPED = frozenset(_SVG + name for name in ("defs", "style", "script", "title", "desc"))
# For pygal's own script; its style attributes would be refused by the page's policy.
_UNUSED = frozenset({"tooltip-overlay", "text-overlay"})
_KEPT = frozenset(
    ("class", "cx", "cy", "d", "height", "r", "rx", "ry", "transform", "viewBox", "width", "x", "y")
)
_FONT = 11
_WIDTH, _HEIGHT = 360, 170
_TICKS = 4
# What is less is drawn as nothing: no scale can be made of it.
_LEAST = 1e-9
_MOST_LABELS = 20
_STYLE = Style(
    label_font_size=_FONT, major_label_font_size=_FONT, value_font_size=_FONT,
    font_family="sans-serif",
)  # fmt: skip

Points = Sequence[tuple[datetime, float]]


def over_time(title: str, points: Points, show: Callable[[float], str] = number) -> str:
    """A line through values at times; the scale begins at 0."""
    chart = _chart(pygal.XY, show_dots=len(points) < 40, dots_size=2)
    top = _set_scale(chart, max(value for _, value in points), show)
    times = [time.timestamp() for time, _ in points]
    chart.x_labels, chart.xrange = _dates(times[0], times[-1])
    chart.add("", [(at, min(value, top)) for at, (_, value) in zip(times, points, strict=True)])
    return _svg(chart, title)


def sparkline(title: str, values: Sequence[float]) -> str:
    """The same without axes, small enough for a line of a table."""
    chart = _chart(
        pygal.Line, width=110, height=26, show_dots=False, show_x_labels=False,
        show_y_labels=False, margin=1, spacing=0,
    )  # fmt: skip
    chart.range = (0, max(*values, _LEAST))
    chart.add("", list(values))
    return _svg(chart, title, "spark")


def bars(title: str, values: Mapping[str, float], show: Callable[[float], str]) -> str:
    """A horizontal bar for each name, in their order."""
    names = list(values)[:_MOST_LABELS]
    chart = _chart(pygal.HorizontalBar, height=8 + 20 * len(names), show_x_labels=False)
    chart.x_labels = [f"{plain(name, 24)}  {show(values[name])}" for name in reversed(names)]
    chart.range = (0, max(_LEAST, *(values[name] for name in names)))
    chart.add("", [values[name] for name in reversed(names)])
    return _svg(chart, title)


def histogram(
    title: str,
    heights: Sequence[float],
    before: Sequence[float] | None,
    ticks: Sequence[tuple[float, str]],
) -> str:
    """Shares (0 to 1) side by side, and earlier ones as an outline; labels at places from 0 on."""
    chart = _chart(pygal.Histogram, height=130)
    _set_scale(chart, max((*heights, *(before or ()))), lambda value: f"{100 * value:.0f} %")
    chart.xrange = (0, len(heights))
    chart.x_labels = [{"value": at, "label": plain(label, 12)} for at, label in ticks]
    for values in (heights, before) if before else (heights,):
        chart.add("", [(value, at, at + 1) for at, value in enumerate(values)])
    return _svg(chart, title)


def _chart(kind: Any, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "width": _WIDTH,
        "height": _HEIGHT,
        "style": _STYLE,
        "explicit_size": False,
        "show_legend": False,
        "no_prefix": True,
        "margin": 2,
        "margin_right": 24,
        "margin_top": 8,
        "spacing": 6,
        "js": (),
        "disable_xml_declaration": True,
    }
    return kind(**(settings | more))


def _set_scale(chart: Any, most: float, show: Callable[[float], str]) -> float:
    """From 0 to the next round number, which is returned."""
    most = most if most > _LEAST else 1.0
    step = _round_up(most / _TICKS)
    ticks = [step * part for part in range(math.ceil(most / step - 1e-9) + 1)]
    chart.range = (0, ticks[-1])
    chart.y_labels = [{"value": tick, "label": show(tick)} for tick in ticks]
    return ticks[-1]


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def _dates(first: float, last: float) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """Labels of a time axis, and its ends."""
    if last - first < 1:
        first, last = first - 1, last + 1
    forms = {600: "%H:%M:%S", 86400: "%H:%M", 300 * 86400: "%m-%d"}
    form = next((form for most, form in forms.items() if last - first < most), "%Y-%m")
    ticks = [first + (last - first) * part / _TICKS for part in range(_TICKS + 1)]
    labels = [
        {"value": at, "label": datetime.fromtimestamp(at, UTC).astimezone().strftime(form)}
        for at in ticks
    ]
    return labels, (first, last)


def _svg(chart: Any, title: str, kind: str = "chart") -> str:
    """The chart with nothing in it but shapes and texts; `title` is for who cannot see it."""
    root = ElementTree.fromstring(chart.render(is_unicode=True))
    _clean(root)
    root.set("class", kind)
    root.set("role", "img")
    root.set("aria-label", plain(title))
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element) -> None:
    element.tag = element.tag.removeprefix(_SVG)  # within HTML it is known without
    for name in set(element.attrib) - _KEPT:
        del element.attrib[name]
    for child in list(element):
        if child.tag in _DROPPED or _UNUSED & set(child.get("class", "").split()):
            element.remove(child)
        else:
            _clean(child)
