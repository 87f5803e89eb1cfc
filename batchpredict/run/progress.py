"""Progress: a bar on a terminal, a line in the log now and then, a summary at the end."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from batchpredict.counting import count
from batchpredict.data.locations import STDIO
from batchpredict.run.receipt import Counts, Receipt

logger = logging.getLogger(__name__)

_LOG_SECONDS = 30.0
_NAME_WIDTH = 24


class Seen(Protocol):
    """What is read: its name, stored bytes read so far and in all (None: unknown)."""

    @property
    def name(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def size(self) -> int | None: ...


class Progress:
    """Told after each window. `bar` None: on a terminal only."""

    def __init__(self, bar: bool | None) -> None:
        self._shown = sys.stderr.isatty() if bar is None else bar
        self._source: Seen | None = None
        self._bar: Any = None
        self._begin = self._logged = self._told = time.monotonic()

    def __call__(self, counts: Counts, source: Seen) -> None:
        """Show where the run is."""
        if source is not self._source:
            self.close()
            self._source = source
            self._begin = self._logged = self._told  # when the one before was done
            self._bar = self._new_bar(source) if self._shown else None
        self._told = time.monotonic()
        rate = counts.read / max(self._told - self._begin, 1e-9)
        if self._bar is not None:
            self._bar.n = min(source.position, source.size or source.position)
            self._bar.set_postfix_str(
                f"{count(counts.read, 'row')}, {rate:,.0f} rows/s", refresh=True
            )
        elif self._told - self._logged >= _LOG_SECONDS:
            self._logged = self._told
            share = f" ({source.position / source.size:.0%})" if source.size else ""
            told = f"{count(counts.read, 'row')}{share}, {rate:,.0f} rows/s"
            logger.info("%s: %s", source.name, told, extra=_progress(source.name, counts))

    def transferred(self, size: int) -> None:
        """Show how many bytes of the model have come."""
        if self._shown and self._bar is None:
            self._bar = _transfer_bar("fetching the model", None)
        if self._bar is not None:
            self._bar.update(size)

    def published(self, receipt: Receipt) -> None:
        """Say what has become of an input; its receipt, for programs, is the last line."""
        self.close()
        logger.info("%s", summary(receipt), extra=_event("summary", receipt))
        for what, path in (
            ("output", receipt.output.path if receipt.output else None),
            ("rejects", receipt.rejects.path),
        ):
            if path and path != STDIO:
                logger.info("%s: %s", what, path, extra=_event(what, receipt))
        if codes := receipt.rejects.codes:
            logger.warning("%s", lost(receipt.inputs[0].path, codes), extra=_event("lost", receipt))
        log_receipt(receipt)

    def _new_bar(self, source: Seen) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=source.size,
            unit="B",
            unit_scale=True,
            desc=_short(source.name),
            leave=False,
            file=sys.stderr,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
            if source.size
            else "{desc}: {elapsed} {postfix}",
        )

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def transferring(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, which is told of bytes."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with _transfer_bar(what, total) as bar:
        yield bar.update


def _transfer_bar(what: str, total: int | None) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, desc=what, leave=False, file=sys.stderr)


def log_receipt(receipt: Receipt) -> None:
    """Put a receipt into the log, in the formats that are for programs."""
    fields = {"receipt": receipt.content()}
    told = f"{receipt.inputs[0].path}: exit code {receipt.exit_code}"
    logger.info("%s", told, extra={"event": "receipt", "fields": fields})


def _progress(name: str, counts: Counts) -> dict[str, Any]:
    return {"event": "progress", "fields": {"input": name, "counts": asdict(counts)}}


def _event(name: str, receipt: Receipt) -> dict[str, Any]:
    return _progress(receipt.inputs[0].path, receipt.counts) | {"event": name}


def _short(name: str) -> str:
    """A file's name without its directory; the end of one that would leave no room for a bar."""
    name = Path(name).name
    return name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"


def lost(name: str, codes: Mapping[str, int]) -> str:
    """How many rows of an input have no prediction, and why."""
    told = ", ".join(f"{code} {rows}" for code, rows in codes.items())
    return f"{name}: {count(sum(codes.values()), 'row')} could not be scored ({told})"


def summary(receipt: Receipt) -> str:
    """One input's result in one line."""
    counts = receipt.counts
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in receipt.stages.items())
    parts = [count(counts.read, "row"), f"{counts.scored:,} scored"]
    if counts.nulls:
        parts.append(f"{counts.nulls:,} without prediction")
    if counts.rejected:
        parts.append(f"{counts.rejected:,} rejected")
    if counts.truncated:
        parts.append(f"{counts.truncated:,} truncated to the model's maximum length")
    parts.append(f"{receipt.rows_per_second:,.0f} rows/s")
    return f"{receipt.inputs[0].path}: {', '.join(parts)}; seconds per stage: {stages}"
