"""``pipeline study``: manifests x seeds, each trained, ingested, run through both stages, evaluated and checked.

Every step leaves alone what is there already, so that a study that was interrupted goes on where it was, and one whose
data sets or settings grew computes what is new. What goes wrong with one run stops that run alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from os.path import commonpath
from pathlib import Path
from typing import Any

from pipeline.drivers.check import check
from pipeline.drivers.finetune import finetune, require_card
from pipeline.drivers.infer import infer
from pipeline.drivers.ingest import ingest
from pipeline.drivers.precompute import precompute
from pipeline.drivers.study_sources import LeftOut, StudySources
from pipeline.engines.engine import Engine, EngineName, choose_engine
from pipeline.errors import ManifestError, PipelineError, ProblemsError, SourceError, StaleCacheError
from pipeline.manifest import Manifest, load_manifest
from pipeline.manifest.images import EvaluationSet
from pipeline.progress import StudyProgress, study_progress
from pipeline.results.layout import FAILED, LEFT_OUT
from pipeline.results.metrics import evaluate_run
from pipeline.results.report import write_report
from pipeline.stages.selection import select_methods
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


@dataclass(slots=True)
class StudySummary:
    """What a study did: the runs that are complete, what it went on without, and where the report lies."""

    folder: Path
    runs: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    report: Path | None = None

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each; absent data sets are not."""
        return self._lines(absent=False)

    @property
    def missing(self) -> list[str]:
        """Data sets that are not at hand, a line each."""
        return self._lines(absent=True)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "folder": str(self.folder),
            "runs": [str(run) for run in self.runs],
            "missing": self.missing,
            "problems": self.problems,
            "report": None if self.report is None else str(self.report),
        }

    def fail(self, run: StudyRun, error: PipelineError) -> None:
        """Note what stopped a run."""
        self.left_out += [LeftOut(run.label, line, absent=False) for line in str(error).splitlines()]

    def _lines(self, *, absent: bool) -> list[str]:
        return list(dict.fromkeys(f"{item.what}: {item.reason}" for item in self.left_out if item.absent is absent))


@dataclass(frozen=True, slots=True)
class _Step:
    """One command on one run: ``units`` estimates its work in image forwards, ``work`` says whether it did any."""

    label: str
    units: int
    work: Callable[[], bool]


@dataclass(slots=True)
class _Worker:
    """Does the steps of one run; ``manifest`` has the evaluation sets at hand, ``left_out`` says why not the others."""

    run: StudyRun
    manifest: Manifest
    left_out: dict[str, str]
    engine: Engine
    sources: StudySources
    trainings: Sequence[Manifest]
    summary: StudySummary
    allow_code: bool

    def steps(self) -> Iterator[_Step]:
        """What there is to do, in order; nothing when none of the run's evaluation sets is at hand."""
        if self.run.manifest.evaluation_sets and not self.manifest.evaluation_sets:
            return
        for name, section in self.manifest.finetune.items():
            images = self.sources.count(section.train, self.manifest.data_root) * section.epochs
            yield self._step(f"train {name}", FORWARDS_PER_TRAINED * images, partial(self._train, name))
        if not self.manifest.evaluation_sets:
            return
        images = self.sources.count(self.manifest.evaluation_sets, self.manifest.data_root)
        yield self._step("ingest", images, self._ingest)
        yield self._step("precompute", images * len(self.manifest.checkpoints), self._precompute)
        yield self._step("infer", images * len(select_methods(self.manifest)), self._infer)
        yield self._step("evaluate", images, self._evaluate)

    def _step(self, name: str, units: int, work: Callable[[], bool]) -> _Step:
        return _Step(f"{self.run.label}: {name}", units, work)

    def _train(self, name: str) -> bool:
        """Train a model on what is at hand; a checkpoint whose images are not at hand any more is taken by its card."""
        manifest = self.manifest
        reduced, notes = self.sources.training(manifest, manifest.finetune[name])
        if not notes:
            return not finetune(manifest, name)[0].up_to_date
        if Path(str(manifest.checkpoints[name])).exists() and self._is_described(name, strictly=not reduced.train):
            self._note(f"{name} was taken as its card describes it, without a look at", notes)
            return False
        if not reduced.train:
            raise SourceError(f"finetune.{name}: none of its training sets is at hand ({notes[0].reason})")
        self._note(f"{name} was trained without", notes)
        return not finetune(manifest.model_copy(update={"finetune": {name: reduced}}), name)[0].up_to_date

    def _is_described(self, name: str, *, strictly: bool) -> bool:
        """Whether a checkpoint's card says what the manifest does; ``strictly``, it is refused where it does not."""
        try:
            require_card(self.manifest, name)
        except StaleCacheError:
            if strictly:
                raise
            return False
        return True

    def _note(self, what: str, notes: Sequence[LeftOut]) -> None:
        self.summary.left_out += [
            LeftOut(f"{self.run.label}: {what} {note.what}", note.reason, absent=True) for note in notes
        ]

    def _ingest(self) -> bool:
        """Ingest the sets whose sources are at hand; one that turns out to be damaged is left out of the run."""
        at_hand = [
            item for item in self.manifest.evaluation_sets if not self.sources.problems(item, self.manifest.data_root)
        ]
        try:
            return bool(at_hand and ingest(self._with_sets(at_hand), self.engine).computed)
        except SourceError:
            return sum(self._ingest_alone(item) for item in at_hand) > 0

    def _ingest_alone(self, item: EvaluationSet) -> bool:
        try:
            return ingest(self._with_sets([item]), self.engine).computed > 0
        except SourceError as error:
            what = f"{self.run.label}: evaluation set {item.name!r}"
            self.summary.left_out += [LeftOut(what, line, absent=False) for line in str(error).splitlines()]
            self.left_out[item.name] = str(error)
            self.manifest = self._with_sets([each for each in self.manifest.evaluation_sets if each is not item])
            if not self.manifest.evaluation_sets:
                raise
            return False

    def _precompute(self) -> bool:
        return precompute(self.manifest, self.engine, allow_code=self.allow_code).computed > 0

    def _infer(self) -> bool:
        return infer(self.manifest, self.engine, allow_code=self.allow_code).computed > 0

    def _evaluate(self) -> bool:
        """Look for leaks, with the manifests that trained the run's models, and evaluate.

        Never counts as computed: how long it takes says nothing of what the other steps will.
        """
        used = set(self.manifest.checkpoints.values())
        makers = [item for item in self.trainings if used & {item.checkpoints[name] for name in item.finetune}]
        check(self.manifest, makers)
        RunDirectory(Path(self.manifest.output)).update_record(**{LEFT_OUT: self.left_out})
        evaluate_run(Path(self.manifest.output))
        return False

    def _with_sets(self, items: list[EvaluationSet]) -> Manifest:
        return self.manifest.model_copy(update={"evaluation_sets": items})


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
            chosen = dict.fromkeys(seeds or own)
            loaded = [StudyRun(load_manifest(path, data_root=data_root, seed=seed), seed) for seed in chosen]
            for run in loaded:
                select_methods(run.manifest)
            runs += loaded
        except PipelineError as error:
            problems += str(error).splitlines()
    problems = list(dict.fromkeys(problems)) or _collisions(runs)
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
    """Do everything that is not done yet, one run after another, and report on all that are complete.

    A problem with one run, or with one set of it, does not stop the others; the summary says what was left out.
    """
    summary = StudySummary(study_folder(runs))
    sources = StudySources()
    trainings = [run.manifest for run in runs if run.manifest.finetune]
    planned: list[tuple[_Worker, list[_Step]]] = []
    for run in runs:
        unavailable = sources.unavailable(run.manifest)
        summary.left_out += [item for items in unavailable.values() for item in items]
        kept = [item for item in run.manifest.evaluation_sets if item.name not in unavailable]
        manifest = run.manifest.model_copy(update={"evaluation_sets": kept})
        reasons = {name: "; ".join(item.reason for item in items) for name, items in unavailable.items()}
        try:
            chosen = choose_engine(engine, manifest, workers)
            worker = _Worker(run, manifest, reasons, chosen, sources, trainings, summary, allow_code)
            planned.append((worker, list(worker.steps())))
        except PipelineError as error:
            summary.fail(run, error)
    progress = study_progress(sum(step.units for _, steps in planned for step in steps))
    for worker, steps in planned:
        _complete(worker, steps, progress)
    for path in summary.runs:
        RunDirectory(path).update_record(**{FAILED: summary.problems})
    if summary.runs:
        summary.report = write_report(*summary.runs, output=summary.folder / "report")
    return summary


def _complete(worker: _Worker, steps: Sequence[_Step], progress: StudyProgress) -> None:
    """Do the steps of one run; the first that fails ends it."""
    try:
        for step in steps:
            with progress.step(step.label, step.units) as done:
                done.computed = step.work()
    except PipelineError as error:
        worker.summary.fail(worker.run, error)
        return
    if worker.manifest.evaluation_sets:
        worker.summary.runs.append(Path(worker.manifest.output))


def _manifest_files(paths: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(path.glob("[!.]*.yaml")) if path.is_dir() else [path]
        if not inside:
            raise ManifestError(f"{path}: holds no manifest (*.yaml); give a manifest, or a folder of them")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _collisions(runs: Sequence[StudyRun]) -> list[str]:
    """Run directories and checkpoints that two runs would both write."""
    written: dict[str, StudyRun] = {}
    problems = []
    for run in runs:
        manifest = run.manifest
        places = {"output": manifest.output} if manifest.evaluation_sets else {}
        places |= {manifest.checkpoint_key(name): str(manifest.checkpoints[name]) for name in manifest.finetune}
        for key, place in places.items():
            other = written.setdefault(place, run)
            if other is run:
                continue
            is_seed = other.manifest.name == manifest.name
            remedy = "put {seed} into it" if is_seed else "give one of them another place"
            problems.append(f"{run.label}: {key} is {place}, which {other.label} writes too; {remedy}")
    return problems
