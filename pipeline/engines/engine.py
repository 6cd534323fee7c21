"""What an engine is, and how one is chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.errors import EngineError
from pipeline.manifest.schema import Manifest
from pipeline.stages.work import Report, WorkerFactory, WorkItem

EngineName = Literal["ray", "local"]


@dataclass(frozen=True, slots=True)
class Job:
    """Items for workers of one kind. ``scores`` says that they need the run's device, not only a CPU."""

    name: str
    items: Sequence[WorkItem]
    make_worker: WorkerFactory
    scores: bool


class Engine(Protocol):
    """Runs jobs. Items may run in any order, on any worker, and more than once; what they commit is the same."""

    def run(self, job: Job, on_report: Callable[[Report], None]) -> None:
        """Run all items of ``job`` and report each as it is committed; errors of workers are raised as they were."""
        ...

    def numeric_kind(self) -> Mapping[str, str]:
        """Numeric kind of the workers that this engine would start for the manifest."""
        ...


def choose_engine(name: EngineName, manifest: Manifest, workers: int | None = None) -> Engine:
    """Engine by name with ``workers`` processes, by default the manifest's; only ``ray`` imports Ray."""
    if name == "local":
        if workers is not None and workers > 1:
            raise EngineError(f"--workers {workers}: the local engine is this process alone; use --engine ray")
        from pipeline.engines.local import LocalEngine

        return LocalEngine(manifest)
    from pipeline.engines.ray import RayEngine

    return RayEngine(manifest, workers or manifest.compute.workers)
