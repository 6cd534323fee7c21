"""Flat memory for processes that work through thousands of parts."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
LARGE_BYTES = 8 << 20


def return_large_blocks() -> None:
    """Have glibc hand blocks of 8 MiB and more back to the system as soon as they are freed.

    By default it raises that bound to the largest block it has seen freed, and then every thread's arena keeps one:
    a worker that reads pixels in threads grows with each part until all arenas hold a block. Elsewhere than on glibc
    nothing is done, and nothing is lost but that growth.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)
