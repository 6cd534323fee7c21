"""Flat memory for processes that work through thousands of parts."""

import ctypes
import sys

M_ARENA_MAX = -8  # from glibc's malloc.h


def use_one_malloc_arena() -> None:
    """Have all threads of this process share glibc's main arena; a process that already did is left as it is.

    By default each new thread gets an arena, which keeps what the thread once freed: a worker that reads in threads
    then grows with every part until all arenas are full. Elsewhere than on glibc nothing is done, and nothing is lost
    but that growth.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
