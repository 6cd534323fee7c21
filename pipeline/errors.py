"""Every error that a user can cause: one base class, one exit code.

Each message is one line: what was wrong, where it came from, what to do. The command line prints it and exits with
``exit_code``; a traceback therefore always means a defect of ours.
"""

from collections.abc import Sequence


class PipelineError(Exception):
    """Base of all errors that a user can cause and mend; the command line exits with ``exit_code``."""

    exit_code = 2


class ManifestError(PipelineError, ValueError):
    """The manifest does not say what it must, or says something unknown."""


class CheckpointError(PipelineError, ValueError):
    """A checkpoint cannot be found, read or trusted, or does not fit its architecture or its partner."""


class SourceError(PipelineError, ValueError):
    """A source of images is absent, empty, damaged or not what its published digest says."""


class AbsentSourceError(SourceError):
    """A source's files are not at hand: nothing is wrong with them, they have to be fetched."""


class ArchiveError(PipelineError, ValueError):
    """An archive is absent, damaged, or was made from something else."""


class ArchiveUnavailableError(ArchiveError):
    """An archive cannot be read for now: storage or memory failed, which says nothing about the images."""


class StaleCacheError(PipelineError, ValueError):
    """Cached work was made from other inputs than the ones asked for now."""


class NumericKindError(PipelineError, ValueError):
    """A worker computes with another numeric kind (device, threads, precision, ...) than the run's."""


class RunDirectoryError(PipelineError, ValueError):
    """A run directory is absent, incomplete for what is asked, or in use by another process."""


class EngineError(PipelineError, RuntimeError):
    """The engine that runs the parts is not available or failed."""


class OutOfMemoryError(PipelineError, MemoryError):
    """The models do not fit into the memory of their device, however few images are scored at once."""


class TrainingError(PipelineError, ValueError):
    """Training data or settings cannot be trained with, or the training diverged."""


class ProblemsError(PipelineError, ValueError):
    """Several independent problems, all listed at once, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ProblemsError"], tuple[tuple[str, ...]]]:
        """Keep the problems apart across processes; the default would split the message into letters."""
        return (type(self), (self.problems,))


def one_line(error: BaseException, limit: int = 300) -> str:
    """Message of a library's error on one line, for quoting inside one of ours."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
