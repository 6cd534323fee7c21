"""Online inference: λ on the fly, nothing cached. Three passes per batch, window by window.

A window's images are read and scored by both models first, on stage one's tiles, which gives its λ and its batches;
then they are read again and scored by the merged models. The answers are those of the cached way, byte for byte.
"""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from pipeline.archives.archive import Archive, Window
from pipeline.methods import METHODS, Method
from pipeline.stages.context import RunContext
from pipeline.stages.infer import InferWorker, SlicePredictions, WindowPlan, slice_fingerprints, window_samples
from pipeline.stages.plan import derive_batches, derive_samples, window_rows
from pipeline.stages.precompute import PrecomputeWorker
from pipeline.stages.tables import rows_digest
from pipeline.stages.variants import method_variant
from pipeline.stages.work import Report, WorkItem
from pipeline.store.ledger import Ledger
from pipeline.store.tables import PartState, part_state


class OnlineWorker(InferWorker, PrecomputeWorker):
    """Commits the predictions of whole windows; an item's ``part`` is a window's index."""

    def run(self, item: WorkItem) -> Report:
        """Score one window and commit those of its slices that are not there yet."""
        assert item.method is not None
        name, method = item.evaluation_set, METHODS[item.method]
        archive = self.context.archive(name)
        window = self.context.windows(archive)[item.part]
        wanted = slice_fingerprints(self.context, name, archive, window, method)
        variant = method_variant(method.name, self.context.manifest)
        ledger = Ledger()
        plan, unmeasured = self._plan_on_the_fly(name, method, archive, window, ledger)
        scorer = self.slice_scorer(name, archive, method)
        total, samples, rejected, committed = Ledger(), 0, 0, 0
        for part, fingerprint in wanted.items():
            path = self.context.directory.predictions(variant, name, part)
            if part_state(path, fingerprint, rows=plan.rows) is PartState.COMMITTED:
                continue
            scored = scorer.score(plan, window, part, ledger)
            ledger.totals["rejected"] += len(unmeasured[part])
            rejects = pa.concat_tables([unmeasured[part], scored.rejects]).sort_by("row")
            predictions = SlicePredictions(scored.table, rejects)
            report = self.commit(WorkItem(name, part, item.method), archive, window, plan.rows, predictions, ledger)
            total.add(ledger)
            committed += 1
            samples, rejected = samples + report.samples, rejected + report.rejected
            # The window's first passes are booked on the first slice that is committed.
            ledger = Ledger()
        return Report(item, samples=samples, rejected=rejected, ledger=total, parts=committed)

    def _plan_on_the_fly(
        self, name: str, method: Method, archive: Archive, window: Window, ledger: Ledger
    ) -> tuple[WindowPlan, dict[int, pa.Table]]:
        """Batches of a window by evidence that is measured now and kept nowhere, and by part the rejects without it."""
        assert method.grouping is not None
        parts = range(window.first_part, window.first_part + window.parts)
        measuring = Ledger()
        measured = {part: self.measure(name, archive, part, measuring) for part in parts}
        # Samples and rejects are counted once, where their predictions are.
        measuring.totals = Counter(images_read=measuring.totals["images_read"])
        ledger.add(measuring)
        samples = pa.concat_tables(derive_samples(self.context, found.table) for found in measured.values())
        batches = derive_batches(self.context, archive, window, method.grouping, samples)
        unmeasured = {part: found.rejects for part, found in measured.items()}
        rows = window_rows([rows_digest(found.table) for found in measured.values()])
        return WindowPlan(batches, window_samples(archive, window), rows), unmeasured


@dataclass(frozen=True, slots=True)
class MakeOnlineWorker:
    """Factory of online workers."""

    context: RunContext

    def __call__(self) -> OnlineWorker:
        """Load the pair in this process."""
        return OnlineWorker(self.context)
