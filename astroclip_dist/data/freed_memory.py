"""Fetched bytes come in new blocks of some megabytes, and the C library hands freed ones back to the kernel.

The next block then costs a page fault each 4 KiB, a quarter of the CPU of fetching from a fast network. Told to keep
what was freed, glibc uses it again. The process keeps the memory that it had at most, which reading bounds anyway.
"""

from __future__ import annotations

import ctypes
from functools import cache

# Numbers of malloc.h (GNU C library).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest that every version takes; a chunk is smaller.
_LARGEST_KEPT = 32 << 20
_NEVER_TRIM = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Have this process use freed blocks again; False where the C library is another than glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM))
