"""Imports of what a command needs and no more; none of it is needed for `--help`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from batchpredict.signals import check_signals, deferred


class _NoPandas:
    """A finder (importlib) that finds pandas missing."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:  # noqa: ARG004
        if name == "pandas":
            raise ModuleNotFoundError("not needed here", name=name)


@contextmanager
def light_imports() -> Iterator[None]:
    """Import what a run needs, and no more, with no look at garbage, of which there is none.

    With its first array pyarrow imports pandas, 0.4 s for nothing, unless it finds none; later it
    still finds it where a pandas object is asked for.
    """
    gc.disable()
    sys.meta_path.insert(0, _NoPandas)
    try:
        with deferred():  # a signal in the middle is an ImportError
            import pyarrow as pa

            pa.array([])
            yield
    finally:
        sys.meta_path.remove(_NoPandas)
        gc.enable()
    check_signals()
