"""Which data sets a study has at hand: every source is opened once, however many runs and seeds name it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.archives.archive import Archive
from pipeline.errors import AbsentSourceError, PipelineError
from pipeline.manifest import Manifest
from pipeline.manifest.images import EvaluationSet, SourceSpec
from pipeline.manifest.schema import Training
from pipeline.stages.context import archive_path
from pipeline.stages.sources import check_declared, open_source


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something a study went on without; ``absent`` says that files are not at hand, else something is wrong."""

    what: str
    reason: str
    absent: bool


@dataclass(frozen=True, slots=True)
class _Opened:
    images: int = 0
    problem: str | None = None
    absent: bool = False


@dataclass(slots=True)
class StudySources:
    """The sources of a study as they were when it began."""

    _opened: dict[tuple[str, str | None], _Opened] = field(default_factory=dict)

    def count(self, items: Sequence[EvaluationSet], data_root: str | None) -> int:
        """Images of all ``items``; none for what cannot be opened."""
        return sum(self._open(spec, data_root).images for item in items for spec in item.source)

    def problems(self, item: EvaluationSet, data_root: str | None) -> list[LeftOut]:
        """What keeps the sources of a set from being read; empty when nothing does."""
        opened = [self._open(spec, data_root) for spec in item.source]
        return [
            LeftOut(f"evaluation set {item.name!r}", line, each.absent)
            for each in opened
            if each.problem is not None
            for line in each.problem.splitlines()
        ]

    def unavailable(self, manifest: Manifest) -> dict[str, list[LeftOut]]:
        """Evaluation sets that can be scored neither from their sources nor from a complete archive, and why."""
        found: dict[str, list[LeftOut]] = {}
        for item in manifest.evaluation_sets:
            problems = self.problems(item, manifest.data_root)
            if problems and (of_archive := _archive_problem(manifest, item)) is not None:
                own = [LeftOut(problems[0].what, line, absent=False) for line in of_archive.splitlines()]
                found[item.name] = problems + own
        return found

    def training(self, manifest: Manifest, section: Training) -> tuple[Training, list[LeftOut]]:
        """A training without the sets that are not at hand, and which these are; damaged ones stay, to be refused."""
        absent = {
            item.name: found
            for item in (*section.train, *section.validation)
            if (found := [each for each in self.problems(item, manifest.data_root) if each.absent])
        }
        kept = {
            role: [item for item in getattr(section, role) if item.name not in absent]
            for role in ("train", "validation")
        }
        notes = [
            LeftOut(f"training set {name!r}", each.reason, absent=True)
            for name, found in absent.items()
            for each in found
        ]
        return section.model_copy(update=kept), notes

    def _open(self, spec: SourceSpec, data_root: str | None) -> _Opened:
        key = (spec.model_dump_json(), data_root)
        if key not in self._opened:
            try:
                self._opened[key] = _Opened(images=len(open_source(spec, data_root)))
            except PipelineError as error:
                self._opened[key] = _Opened(problem=str(error), absent=isinstance(error, AbsentSourceError))
        return self._opened[key]


def _archive_problem(manifest: Manifest, item: EvaluationSet) -> str | None:
    """Why the archive of a set cannot stand in for its sources; empty when there is none, None when it can."""
    path = archive_path(manifest, item.name)
    if not path.exists():
        return ""
    try:
        archive = Archive.open(path)
        check_declared(item, archive)
        missing = archive.missing_parts()
    except PipelineError as error:
        return str(error)
    return f"{path}: {len(missing)} of {archive.parts} parts are missing" if missing else None
