"""How a training shows that it moves: a bar with rate and time left on a terminal, a line per epoch elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.training.state import EpochRecord


class TrainingProgress:
    """Pass ``step`` as ``progress`` and ``epoch_done`` as ``epoch_done`` to :func:`pipeline.training.loop.train`."""

    def __init__(self, epochs: int, console: Console, bar: Progress | None) -> None:
        self._epochs, self._console, self._bar = epochs, console, bar
        self._task: TaskID | None = None
        self._images_per_second = 0.0

    def step(self, epoch: int, step: int, steps: int, loss: float, images_per_second: float) -> None:
        """Move the bar to this step; a resumed training starts where it left off."""
        self._images_per_second = images_per_second
        if self._bar is None:
            return
        done = (epoch - 1) * steps + step
        if self._task is None:
            self._task = self._bar.add_task("", total=self._epochs * steps, completed=done, label="", rate="")
        label = f"epoch {epoch}/{self._epochs}  loss {loss:.3f}"
        self._bar.update(self._task, completed=done, label=label, rate=f"{images_per_second:,.0f} images/s")

    def epoch_done(self, record: EpochRecord) -> None:
        """Print one line: loss, validation accuracies, rate, and the longest time that may be left."""
        accuracies = ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in record.val_accuracy.items())
        left = (self._epochs - record.epoch) * record.seconds
        self._console.print(
            f"epoch {record.epoch}/{self._epochs}: loss {record.train_loss:.3f}, validation accuracy {accuracies}, "
            f"{self._images_per_second:,.0f} images/s, at most {_duration(left)} left",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


@contextmanager
def training_progress(epochs: int, console: Console | None = None) -> Iterator[TrainingProgress]:
    """Show a training of at most ``epochs`` epochs; a bar only where ``console`` (standard error) is a terminal."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield TrainingProgress(epochs, console, None)
        return
    columns = (
        TextColumn("{task.fields[label]}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("at most"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as bar:
        yield TrainingProgress(epochs, console, bar)


def _duration(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86_400 else f"{seconds / 86_400:.1f} days"
