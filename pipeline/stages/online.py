"""Online inference: λ on the fly, nothing cached. Three passes per batch, window by window.

A window's images are read and scored by both models first, on stage one's tiles, which gives its λ and its batches;
then they are read again and scored by the merged models. The answers are those of the cached way, byte for byte.
"""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from pipeline.methods import METHODS, Method
from pipeline.stages.context import RunContext
from pipeline.stages.infer import InferWorker, WindowPlan, slice_fingerprint, window_samples
from pipeline.stages.plan import derive_batches, derive_samples
from pipeline.stages.precompute import PrecomputeWorker
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
        parts = range(window.first_part, window.first_part + window.parts)
        ledger = Ledger()
        plan, unusable = self._plan_on_the_fly(name, method, item.part, ledger)
        scorer = self.slice_scorer(name, archive, method)
        total, samples, rejected = Ledger(), 0, unusable
        for part in parts:
            if self._is_committed(name, method, item.part, part):
                continue
            predictions = scorer.score(plan, window, part, ledger)
            report = self.commit(WorkItem(name, part, item.method), archive, window, predictions, ledger)
            total.add(ledger)
            samples, rejected = samples + report.samples, rejected + report.rejected
            ledger = Ledger()
        return Report(item, samples=samples, rejected=rejected, ledger=total)

    def _plan_on_the_fly(self, name: str, method: Method, index: int, ledger: Ledger) -> tuple[WindowPlan, int]:
        assert method.grouping is not None
        archive = self.context.archive(name)
        window = self.context.windows(archive)[index]
        parts = range(window.first_part, window.first_part + window.parts)
        measuring = Ledger()
        measured = [self.measure(name, archive, part, measuring) for part in parts]
        # Samples and rejects are counted once, where their predictions are.
        measuring.totals = Counter(images_read=measuring.totals["images_read"])
        ledger.add(measuring)
        samples = pa.concat_tables(derive_samples(self.context, part.table) for part in measured)
        batches = derive_batches(self.context, archive, window, method.grouping, samples)
        return WindowPlan(batches, window_samples(archive, window)), sum(len(part.rejects) for part in measured)

    def _is_committed(self, name: str, method: Method, index: int, part: int) -> bool:
        archive = self.context.archive(name)
        window = self.context.windows(archive)[index]
        path = self.context.directory.predictions(method_variant(method.name, self.context.manifest), name, part)
        fingerprint = slice_fingerprint(self.context, name, archive, window, part, method)
        return part_state(path, fingerprint) is PartState.COMMITTED


@dataclass(frozen=True, slots=True)
class MakeOnlineWorker:
    """Factory of online workers."""

    context: RunContext

    def __call__(self) -> OnlineWorker:
        """Load the pair in this process."""
        return OnlineWorker(self.context)
