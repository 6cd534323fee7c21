"""Stage two: slices of batch plans, and parts of methods without batches, to committed predictions."""

import hashlib
from dataclasses import dataclass

from pipeline.archives.archive import Archive, Window
from pipeline.stages.context import EXACT, RunContext
from pipeline.stages.grid import GridScorer, grid_table
from pipeline.stages.plan import covered_rows, plan_path, window_samples
from pipeline.stages.scoring import Predictions
from pipeline.stages.scoring_worker import ScoringWorker
from pipeline.stages.selection import Selected
from pipeline.stages.slices import SliceScorer, WindowPlan
from pipeline.stages.static import StaticScorer
from pipeline.stages.work import Report, WorkItem
from pipeline.store.files import write_json
from pipeline.store.fingerprints import Fingerprint
from pipeline.store.ledger import Ledger
from pipeline.store.tables import ROWS, PartState, part_state, read_table, write_table

STAGE = "infer"


class InferWorker(ScoringWorker):
    """Commits predictions: slices of cached batch plans, and archive parts of methods that form no batches."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self._cached: tuple[tuple[str, str, int], WindowPlan] | None = None
        self._static: tuple[str, StaticScorer] | None = None

    def run(self, item: WorkItem) -> Report:
        """Score one slice or part and commit it."""
        assert item.method is not None
        selected = self.context.selected[item.method]
        if selected.method.combination == "static":
            return self._run_static(item, selected)
        if selected.method.combination == "grid":
            return self._run_grid(item, selected)
        name = item.evaluation_set
        archive = self.context.archive(name)
        window = window_of(self.context, archive, item.part)
        plan = self._plan(name, selected, archive, window)
        ledger = Ledger()
        predictions = self.slice_scorer(name, archive, selected).score(plan, window, item.part, ledger)
        fingerprint = slice_fingerprints(self.context, name, archive, window, selected)[item.part]
        return self.commit(item, fingerprint, plan.rows, predictions, ledger)

    def slice_scorer(self, name: str, archive: Archive, selected: Selected) -> SliceScorer:
        """Scorer of an evaluation set's slices."""
        return SliceScorer(
            archive=archive,
            scorer=self.scorer,
            heads=self.heads(name),
            weights_at=self.context.weights_at,
            class_names=self.context.class_names(name, archive),
            tile=tile_of(self.context, selected),
            read_bytes=self.context.manifest.compute.read_bytes,
            exact=self.context.implementation(selected) == EXACT,
        )

    def commit(
        self, item: WorkItem, fingerprint: Fingerprint, rows: str, predictions: Predictions, ledger: Ledger
    ) -> Report:
        """Commit rejects, ledger and predictions of one slice or part, the predictions last."""
        assert item.method is not None
        name, part = item.evaluation_set, item.part
        directory, variant = self.context.directory, self.context.selected[item.method].variant
        stage = f"{STAGE}/{variant.folder}"
        self.book(ledger)
        with ledger.phase("write"):
            write_table(directory.rejects(stage, name, part), predictions.rejects, fingerprint)
        write_json(directory.ledger(stage, name, part), ledger.as_json())
        write_table(directory.predictions(variant, name, part), predictions.table, fingerprint, {ROWS: rows})
        return Report(item, samples=len(predictions.table), rejected=len(predictions.rejects), ledger=ledger)

    def _run_static(self, item: WorkItem, selected: Selected) -> Report:
        if self._static is None or self._static[0] != selected.key:
            self._static = (selected.key, StaticScorer(self.context, self.models, selected, self.scorer))
        ledger = Ledger()
        predictions = self._static[1].score(item.evaluation_set, item.part, ledger)
        archive = self.context.archive(item.evaluation_set)
        fingerprint = self.context.part_fingerprint(item.evaluation_set, archive, item.part, selected)
        rows = covered_rows(self.context.directory.evidence(item.evaluation_set, item.part))
        return self.commit(item, fingerprint, rows, predictions, ledger)

    def _run_grid(self, item: WorkItem, selected: Selected) -> Report:
        """Commit one part's logits at every λ; which λ is best is known when all parts are there."""
        name, part, directory = item.evaluation_set, item.part, self.context.directory
        archive, ledger = self.context.archive(name), Ledger()
        fingerprint = self.context.part_fingerprint(name, archive, part, selected)
        scored = GridScorer(self.context, self.scorer, self.heads(name)).score(name, archive, part, selected, ledger)
        self.book(ledger)
        stage = f"{STAGE}/{selected.key}"
        write_table(directory.rejects(stage, name, part), scored.rejects, fingerprint)
        write_json(directory.ledger(stage, name, part), ledger.as_json())
        table = grid_table(scored)
        rows = covered_rows(directory.evidence(name, part))
        write_table(directory.grid(selected.variant, name, part), table, fingerprint, {ROWS: rows})
        return Report(item, samples=len(table), rejected=len(scored.rejects), ledger=ledger, parts=0)

    def _plan(self, name: str, selected: Selected, archive: Archive, window: Window) -> WindowPlan:
        key = (name, selected.key, window.index)
        if self._cached is None or self._cached[0] != key:
            path = plan_path(self.context, name, window, selected)
            read_bytes = self.context.manifest.compute.read_bytes
            samples = window_samples(archive, window)
            plan = WindowPlan.of(read_table(path), samples, covered_rows(path), read_bytes)
            self._cached = (key, plan)
        return self._cached[1]


@dataclass(frozen=True, slots=True)
class MakeInferWorker:
    """Factory of stage two's workers."""

    context: RunContext

    def __call__(self) -> InferWorker:
        """Load the models in this process."""
        return InferWorker(self.context)


def tile_of(context: RunContext, selected: Selected) -> int:
    """Images in a forward call: min(tile, batch size); a merge for one image scores one."""
    tile = context.manifest.compute.tile
    if selected.method.grouping == "sample" and context.implementation(selected) != EXACT:
        return 1
    return min(tile, selected.whole("batch_size")) if "batch_size" in selected.settings else tile


def window_of(context: RunContext, archive: Archive, part: int) -> Window:
    """The window that an archive part lies in."""
    return next(window for window in context.windows(archive) if part in window.part_numbers)


def plan_digest(context: RunContext, name: str, archive: Archive, selected: Selected) -> str:
    """SHA-256 over all that stage two's answers on an evaluation set follow from, given the run's models and images.

    Batches with their rows and λ, the tile, and how a batch is scored: methods of equal digests give equal predictions.
    """
    digest = hashlib.sha256(f"{tile_of(context, selected)} {context.implementation(selected)}".encode())
    for window in context.windows(archive):
        plan = read_table(plan_path(context, name, window, selected), ["batch", "size", "lambda", "rows"])
        digest.update(f" {len(plan)} {window.first_part} ".encode())
        for column in (plan["batch"], plan["size"], plan["lambda"], plan["rows"].combine_chunks().flatten()):
            digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()


def slice_fingerprints(
    context: RunContext, name: str, archive: Archive, window: Window, selected: Selected
) -> dict[int, Fingerprint]:
    """What each slice of a window's predictions depends on, by part, whether λ was cached or computed on the fly."""
    batches = context.batches_fingerprint(name, archive, window, selected)
    return {part: context.predictions_fingerprint(batches, part, selected) for part in window.part_numbers}


def committed_slices(
    context: RunContext, name: str, archive: Archive, window: Window, selected: Selected, rows: str | None
) -> frozenset[int]:
    """Slices of a window whose predictions are there, of a plan that covers ``rows`` (None: whatever they are)."""
    return frozenset(
        part
        for part, fingerprint in slice_fingerprints(context, name, archive, window, selected).items()
        if part_state(context.directory.predictions(selected.variant, name, part), fingerprint, rows=rows)
        is PartState.COMMITTED
    )


def is_committed_part(
    context: RunContext, name: str, archive: Archive, part: int, selected: Selected, rows: str | None
) -> bool:
    """Whether what a method without batches leaves of a part, predictions or a grid's logits, is there for ``rows``."""
    directory = context.directory
    path_of = directory.grid if selected.method.combination == "grid" else directory.predictions
    fingerprint = context.part_fingerprint(name, archive, part, selected)
    return part_state(path_of(selected.variant, name, part), fingerprint, rows=rows) is PartState.COMMITTED
