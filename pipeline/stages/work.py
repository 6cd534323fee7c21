"""Items of work and reports about them: all that passes between a driver and its workers."""

from dataclasses import dataclass
from typing import Protocol

from pipeline.store.ledger import Ledger


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One unit of work, retry and commit: a part of an evaluation set, or a window of it for online inference."""

    evaluation_set: str
    part: int
    method: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What became of an item that is now committed, and how many parts of the run that gave."""

    item: WorkItem
    samples: int
    rejected: int
    ledger: Ledger
    parts: int = 1


class Worker(Protocol):
    """Runs items one after another in one process; made once per process, so that models are loaded once."""

    def run(self, item: WorkItem) -> Report:
        """Do the item's work and commit it; running it twice leaves the same files."""
        ...


class WorkerFactory(Protocol):
    """Makes a worker where it will run; can be pickled."""

    def __call__(self) -> Worker:
        """Make the worker: load what all its items need."""
        ...
