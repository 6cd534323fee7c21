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
    """Hold ``folder`` for this process.

    Raises :class:`RunDirectoryError` when another process has it, naming that one, and when it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / LEASE_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(f"{folder}: cannot be written to ({error.strerror}); use another folder") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunDirectoryError(
                f"{folder}: in use by {holder}; wait until it ends, or use another folder"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
