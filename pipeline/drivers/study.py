"""``pipeline study``: manifests x seeds, each trained, ingested, run through both stages, evaluated and checked.

Every step leaves alone what is there already, so that a study that was interrupted goes on where it was, and one whose
data sets or settings grew computes what is new.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from os.path import commonpath
from pathlib import Path
from typing import Any

from pipeline.archives.archive import Archive
from pipeline.drivers.check import check
from pipeline.drivers.finetune import finetune
from pipeline.drivers.infer import infer
from pipeline.drivers.ingest import ingest
from pipeline.drivers.precompute import precompute
from pipeline.engines.engine import Engine, EngineName, choose_engine
from pipeline.errors import AbsentSourceError, ArchiveError, ManifestError, PipelineError, ProblemsError
from pipeline.manifest import Manifest, load_manifest
from pipeline.manifest.images import EvaluationSet
from pipeline.progress import study_progress
from pipeline.results.layout import LEFT_OUT
from pipeline.results.metrics import evaluate_run
from pipeline.stages.context import archive_path
from pipeline.stages.selection import select_methods
from pipeline.stages.sources import check_declared, open_source
from pipeline.store.run_directory import RunDirectory

# A training step costs a forward and a backward pass, which is about two forwards.
FORWARDS_PER_TRAINED = 3


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One manifest at one seed."""

    manifest: Manifest
    seed: int

    @property
    def label(self) -> str:
        """How progress and problems call it."""
        return f"{self.manifest.name}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something the study went on without; ``absent`` says that files are not at hand, else something is wrong."""

    what: str
    reason: str
    absent: bool


@dataclass(slots=True)
class StudySummary:
    """What a study did: the runs that are complete, and what it went on without."""

    folder: Path
    runs: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each; absent data sets are not."""
        return [f"{item.what}: {item.reason}" for item in self.left_out if not item.absent]

    @property
    def missing(self) -> list[str]:
        """Data sets that are not at hand, a line each."""
        return list(dict.fromkeys(f"{item.what}: {item.reason}" for item in self.left_out if item.absent))

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "folder": str(self.folder),
            "runs": [str(run) for run in self.runs],
            "missing": self.missing,
            "problems": self.problems,
        }


@dataclass(frozen=True, slots=True)
class _Step:
    """One command on one run: ``units`` estimates its work in image forwards, ``work`` says whether it did any."""

    label: str
    units: int
    work: Callable[[], bool]


def plan_study(paths: Sequence[Path], *, seeds: Sequence[int] = (), data_root: Path | None = None) -> list[StudyRun]:
    """Every manifest at each of ``seeds``, by default at those of its own ``seeds.study``.

    A folder stands for the manifests in it. Manifests that only train go first: others may start from their models.
    Raises :class:`ProblemsError` with the problems of all manifests, and when two runs would write to one place.
    """
    runs: list[StudyRun] = []
    problems: list[str] = []
    for path in _manifest_files(paths):
        try:
            own = load_manifest(path, data_root=data_root).seeds.study
            runs += [StudyRun(load_manifest(path, data_root=data_root, seed=seed), seed) for seed in seeds or own]
        except PipelineError as error:
            problems += str(error).splitlines()
    problems = problems or _collisions(runs)
    if problems:
        raise ProblemsError(problems)
    return sorted(runs, key=lambda run: bool(run.manifest.evaluation_sets))


def study_folder(runs: Sequence[StudyRun]) -> Path:
    """Folder that holds all runs of a study; :class:`ManifestError` when there is nothing to evaluate."""
    outputs = {run.manifest.output for run in runs if run.manifest.evaluation_sets}
    if not outputs:
        raise ManifestError("no manifest of the study names an evaluation set; list at least one")
    return Path(commonpath(outputs)) if len(outputs) > 1 else Path(outputs.pop())


def run_study(
    runs: Sequence[StudyRun], engine: EngineName, *, workers: int | None = None, allow_code: bool = False
) -> StudySummary:
    """Do everything that is not done yet, one run after another; a problem with one does not stop the others."""
    summary = StudySummary(study_folder(runs))
    trainings = [run.manifest for run in runs if run.manifest.finetune]
    planned = []
    for run in runs:
        manifest = _without_unavailable(run, summary)
        planned.append((run, manifest, list(_steps(run, manifest, engine, workers, trainings, allow_code=allow_code))))
    with study_progress(sum(step.units for _, _, steps in planned for step in steps)) as progress:
        for run, manifest, steps in planned:
            try:
                for step in steps:
                    with progress.step(step.label, step.units) as done:
                        done.computed = step.work()
            except PipelineError as error:
                summary.left_out += [LeftOut(run.label, line, absent=False) for line in str(error).splitlines()]
                continue
            if manifest.evaluation_sets:
                summary.runs.append(Path(manifest.output))
    return summary


def _steps(
    run: StudyRun,
    manifest: Manifest,
    engine_name: EngineName,
    workers: int | None,
    trainings: Sequence[Manifest],
    *,
    allow_code: bool,
) -> Iterator[_Step]:
    if run.manifest.evaluation_sets and not manifest.evaluation_sets:
        return
    for name, section in run.manifest.finetune.items():
        images = _count(section.train, manifest.data_root) * section.epochs
        yield _Step(f"{run.label}: train {name}", FORWARDS_PER_TRAINED * images, partial(_train, manifest, name))
    if not manifest.evaluation_sets:
        return
    engine = choose_engine(engine_name, manifest, workers)
    images = _count(manifest.evaluation_sets, manifest.data_root)
    methods = len(select_methods(manifest))

    def step(name: str, units: int, work: Callable[[], bool]) -> _Step:
        return _Step(f"{run.label}: {name}", units, work)

    yield step("ingest", images, lambda: _ingest(manifest, engine))
    yield step(
        "precompute",
        images * len(manifest.checkpoints),
        lambda: bool(precompute(manifest, engine, allow_code=allow_code).computed),
    )
    yield step("infer", images * methods, lambda: bool(infer(manifest, engine, allow_code=allow_code).computed))
    yield step("evaluate", images, lambda: _evaluate(run, manifest, trainings))


def _train(manifest: Manifest, name: str) -> bool:
    """Train a model, unless it is there and what it was trained on is not at hand any more."""
    section = manifest.finetune[name]
    reference = manifest.checkpoints[name]
    is_there = reference is not None and Path(reference).exists()
    if is_there and any(_problems_with(item, manifest.data_root) for item in (*section.train, *section.validation)):
        return False
    return not finetune(manifest, name)[0].up_to_date


def _ingest(manifest: Manifest, engine: Engine) -> bool:
    """Ingest the sets whose sources are at hand; the others have complete archives."""
    at_hand = [item for item in manifest.evaluation_sets if not _problems_with(item, manifest.data_root)]
    return bool(at_hand and ingest(manifest.model_copy(update={"evaluation_sets": at_hand}), engine).computed)


def _evaluate(run: StudyRun, manifest: Manifest, trainings: Sequence[Manifest]) -> bool:
    used = set(manifest.checkpoints.values())
    makers = [item for item in trainings if used & {item.checkpoints[name] for name in item.finetune}]
    check(manifest, makers)
    kept = {item.name for item in manifest.evaluation_sets}
    left_out = {
        item.name: "; ".join(found.reason for found in _problems_with(item, manifest.data_root))
        for item in run.manifest.evaluation_sets
        if item.name not in kept
    }
    RunDirectory(Path(manifest.output)).update_record(**{LEFT_OUT: left_out})
    evaluate_run(Path(manifest.output))
    return True


def _without_unavailable(run: StudyRun, summary: StudySummary) -> Manifest:
    """The run's manifest without the sets that have neither sources nor a complete archive; the summary says which."""
    kept: list[EvaluationSet] = []
    for item in run.manifest.evaluation_sets:
        found = _problems_with(item, run.manifest.data_root)
        if not found or _has_archive(run.manifest, item):
            kept.append(item)
        summary.left_out += [] if item in kept else found
    return run.manifest.model_copy(update={"evaluation_sets": kept})


def _problems_with(item: EvaluationSet, data_root: str | None) -> list[LeftOut]:
    """What keeps the sources of a set from being read."""
    found = []
    for spec in item.source:
        try:
            open_source(spec, data_root)
        except PipelineError as error:
            absent = isinstance(error, AbsentSourceError)
            found += [LeftOut(f"evaluation set {item.name!r}", line, absent) for line in str(error).splitlines()]
    return found


def _has_archive(manifest: Manifest, item: EvaluationSet) -> bool:
    try:
        archive = Archive.open(archive_path(manifest, item.name))
        check_declared(item, archive)
    except ArchiveError:
        return False
    return not archive.missing_parts()


def _count(items: Sequence[EvaluationSet], data_root: str | None) -> int:
    """Images of all sets whose sources are at hand."""
    at_hand = [item for item in items if not _problems_with(item, data_root)]
    return sum(len(open_source(spec, data_root)) for item in at_hand for spec in item.source)


def _manifest_files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("[!.]*.yaml")) if path.is_dir() else [path]
        if not inside:
            raise ManifestError(f"{path}: holds no manifest (*.yaml); give a manifest, or a folder of them")
        found += inside
    return found


def _collisions(runs: Sequence[StudyRun]) -> list[str]:
    """Run directories and checkpoints that two seeds would both write."""
    written: dict[str, str] = {}
    problems = []
    for run in runs:
        places = {"output": run.manifest.output} if run.manifest.evaluation_sets else {}
        places |= {
            run.manifest.checkpoint_key(name): str(run.manifest.checkpoints[name]) for name in run.manifest.finetune
        }
        for key, place in places.items():
            if place in written:
                problems.append(
                    f"{run.label}: {key} is {place}, which {written[place]} writes too; put {{seed}} into it"
                )
            written.setdefault(place, run.label)
    return problems
