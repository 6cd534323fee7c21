"""The lease: one driver at a time writes a run or an archive.

The lock belongs to the process, so it ends with it, however it ends: after a kill -9 nothing needs to be cleaned up.
"""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import RunDirectoryError

LEASE_NAME = ".lease"


@contextmanager
def hold_lease(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; :class:`RunDirectoryError` naming the holder when another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LEASE_NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunDirectoryError(f"{folder}: in use by {holder}; wait for it, or give another 'output'") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
