"""Free memory that allocators keep, in processes that do one thing after another."""

from __future__ import annotations

import ctypes

import pyarrow as pa


def give_back() -> None:
    """Give it to the system, in some milliseconds.

    In glibc each of many threads has a heap of its own, which keeps the most it ever had.
    """
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # other C libraries have none
        trim(0)
