"""Progress of long work on standard error, with rate and time left; standard output is kept for results."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 10.0
IMAGES = "images"


class WorkProgress:
    """Counts work of one unit; a bar in a terminal, a line every ten seconds elsewhere (a log file, a cluster job)."""

    def __init__(self, name: str, total: int, unit: str, console: Console, bar: Progress | None) -> None:
        self._name, self._total, self._unit, self._console, self._bar = name, total, unit, console, bar
        self._task = bar.add_task(name, total=total, rate="") if bar else None
        self._start = self._last_line = time.monotonic()
        self._done = 0

    def advance(self, count: int) -> None:
        """Count ``count`` more as done."""
        self._done += count
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, rate=f"{rate:,.{self._digits}f} {self._unit}/s")
        elif time.monotonic() - self._last_line >= LINE_SECONDS or self._done >= self._total:
            self._last_line = time.monotonic()
            left = (self._total - self._done) / max(rate, 1e-9)
            counted = f"{self._done:,}/{self._total:,} {self._unit}, {rate:,.{self._digits}f} {self._unit}/s"
            self._console.print(f"{self._name}: {counted}, {left:,.0f} s left", highlight=False, soft_wrap=True)

    @property
    def _digits(self) -> int:
        return 0 if self._unit == IMAGES else 2


@contextmanager
def sample_progress(name: str, total: int) -> Iterator[WorkProgress]:
    """Show progress of ``total`` images while the enclosed work goes on; nothing when there is nothing to do."""
    with work_progress(name, total, IMAGES) as progress:
        yield progress


@contextmanager
def work_progress(name: str, total: int, unit: str) -> Iterator[WorkProgress]:
    """As :func:`sample_progress`, for work that is counted in another ``unit`` (a word in the plural)."""
    console = Console(stderr=True)
    if not console.is_terminal or total == 0:
        yield WorkProgress(name, total, unit, console, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield WorkProgress(name, total, unit, console, bar)


@dataclass(slots=True)
class StepDone:
    """What a step says of itself when it ends: whether it computed anything, or found all of it done."""

    computed: bool = False


class StudyProgress:
    """Counts the work of many steps: a line for each, above the step's own progress, with what is done and time left.

    Time left is told from the steps that computed something: those that were done before cost next to nothing.
    """

    def __init__(self, total: int, console: Console) -> None:
        self._total, self._console = total, console
        self._done = self._computed = 0
        self._seconds = 0.0

    @contextmanager
    def step(self, label: str, units: int) -> Iterator[StepDone]:
        """Show that a step of ``units`` is at work; the caller says in the yielded object whether it was."""
        share = 100 * self._done / max(self._total, 1)
        self._console.print(f"[{share:3.0f} %] {label}{self._time_left()}", highlight=False, markup=False)
        started, done = time.monotonic(), StepDone()
        try:
            yield done
        finally:
            self._done += units
            if done.computed:
                self._computed += units
                self._seconds += time.monotonic() - started

    def _time_left(self) -> str:
        if not self._computed:
            return ""
        seconds = self._seconds / self._computed * (self._total - self._done)
        return f", about {max(1, round(seconds / 60))} min left"


def study_progress(total: int) -> StudyProgress:
    """Progress of ``total`` units of work, on standard error."""
    return StudyProgress(total, Console(stderr=True))
