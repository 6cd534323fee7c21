"""The local engine: the same part functions in this process, one after another. Needs no Ray."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.engines.engine import Job
from pipeline.errors import NumericKindError
from pipeline.manifest.schema import Manifest
from pipeline.models.numeric_kind import kind_for_settings
from pipeline.stages.work import Report


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Runs items in order."""

    manifest: Manifest

    def run(self, job: Job, on_report: Callable[[Report], None]) -> None:
        """Run all items of ``job`` with one worker."""
        if not job.items:
            return
        worker = job.make_worker()
        for item in job.items:
            on_report(worker.run(item))

    def numeric_kind_or_none(self) -> Mapping[str, str] | None:
        """Numeric kind of this process, None where the manifest's device is not here."""
        try:
            return self.numeric_kind()
        except NumericKindError:
            return None

    def numeric_kind(self) -> Mapping[str, str]:
        """Numeric kind of this process with the manifest's settings."""
        return kind_for_settings(**self.manifest.kind_settings).as_inputs()
