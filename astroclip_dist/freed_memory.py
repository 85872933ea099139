"""The C library hands large freed blocks back to the kernel, and the next one costs a page fault each 4 KiB.

That is a quarter of the CPU time of fetching from a fast network, and a tenth of a training step's on a CPU, whose
activations come and go by tens of megabytes (on a GPU torch keeps freed memory itself). Told to keep what was freed,
glibc uses it again. The process keeps the memory that it had at most.
"""

from __future__ import annotations

import ctypes
from functools import cache

# Numbers of malloc.h (GNU C library).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER_TRIM = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Have this process use freed blocks again; False where the C library is another than glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM))
