"""Flat memory for processes that work through thousands of parts."""

import ctypes
import sys
from collections.abc import Callable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
LARGE_BYTES = 8 << 20


def return_large_blocks() -> None:
    """Have glibc hand blocks of 8 MiB and more back to the system as soon as they are freed.

    By default it raises that bound to the largest block it has seen freed, and then every thread's arena keeps one:
    a worker that reads pixels in threads grows with each part until all arenas hold a block. Elsewhere than on glibc
    nothing is done, and nothing is lost but that growth.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)


def release_freed_memory() -> None:
    """Have glibc hand back what it keeps of freed memory, once; elsewhere nothing is done."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
