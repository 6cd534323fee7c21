"""Online inference: λ on the fly, nothing cached. A pass of every source and one more per batch, window by window.

A window's images are read and scored by all sources first, on stage one's tiles, which gives its λ and its batches;
then they are read again and scored by the merged models. The answers are those of the cached way, byte for byte.
"""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from pipeline.archives.archive import Archive, Window
from pipeline.stages.context import RunContext
from pipeline.stages.infer import InferWorker, slice_fingerprints
from pipeline.stages.plan import derive_batches, derive_samples, window_rows, window_samples
from pipeline.stages.precompute import PrecomputeWorker
from pipeline.stages.scoring import Predictions
from pipeline.stages.selection import Selected
from pipeline.stages.slices import WindowPlan
from pipeline.stages.tables import rows_digest
from pipeline.stages.work import Report, WorkItem
from pipeline.store.ledger import Ledger
from pipeline.store.tables import PartState, part_state


class OnlineWorker(InferWorker, PrecomputeWorker):
    """Commits the predictions of whole windows; an item's ``part`` is a window's index."""

    def run(self, item: WorkItem) -> Report:
        """Score one window and commit those of its slices that are not there yet."""
        assert item.method is not None
        name, selected = item.evaluation_set, self.context.selected[item.method]
        archive = self.context.archive(name)
        window = self.context.windows(archive)[item.part]
        wanted = slice_fingerprints(self.context, name, archive, window, selected)
        ledger = Ledger()
        plan, unmeasured = self._plan_on_the_fly(name, selected, archive, window, ledger)
        # All slices' λ follow from these passes, whichever slice they are booked on.
        micro_batch = self.scorer.micro_batches.take_smallest()
        scorer = self.slice_scorer(name, archive, selected)
        total, samples, rejected, committed = Ledger(), 0, 0, 0
        for part, fingerprint in wanted.items():
            path = self.context.directory.predictions(selected.variant, name, part)
            if part_state(path, fingerprint, rows=plan.rows) is PartState.COMMITTED:
                continue
            ledger.note_micro_batch(micro_batch)
            scored = scorer.score(plan, window, part, ledger)
            ledger.totals["rejected"] += len(unmeasured[part])
            rejects = pa.concat_tables([unmeasured[part], scored.rejects]).sort_by("row")
            predictions = Predictions(scored.table, rejects)
            report = self.commit(WorkItem(name, part, item.method), fingerprint, plan.rows, predictions, ledger)
            total.add(ledger)
            committed += 1
            samples, rejected = samples + report.samples, rejected + report.rejected
            # The window's first passes are booked on the first slice that is committed.
            ledger = Ledger()
        return Report(item, samples=samples, rejected=rejected, ledger=total, parts=committed)

    def _plan_on_the_fly(
        self, name: str, selected: Selected, archive: Archive, window: Window, ledger: Ledger
    ) -> tuple[WindowPlan, dict[int, pa.Table]]:
        """Batches of a window by evidence that is measured now and kept nowhere, and by part the rejects without it."""
        measuring = Ledger()
        measured = {part: self.measure(name, archive, part, measuring) for part in window.part_numbers}
        # Samples and rejects are counted once, where their predictions are.
        measuring.totals = Counter(images_read=measuring.totals["images_read"])
        ledger.add(measuring)
        tables = [found.table for found in measured.values()]
        if not selected.weighs_sources:
            tables = [derive_samples(self.context, selected, table) for table in tables]
        batches = derive_batches(self.context, archive, window, selected, pa.concat_tables(tables))
        unmeasured = {part: found.rejects for part, found in measured.items()}
        rows = window_rows([rows_digest(found.table) for found in measured.values()])
        read_bytes = self.context.manifest.compute.read_bytes
        return WindowPlan.of(batches, window_samples(archive, window), rows, read_bytes), unmeasured


@dataclass(frozen=True, slots=True)
class MakeOnlineWorker:
    """Factory of online workers."""

    context: RunContext

    def __call__(self) -> OnlineWorker:
        """Load the pair in this process."""
        return OnlineWorker(self.context)
