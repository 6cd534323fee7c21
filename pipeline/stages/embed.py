"""Heads and static merges as items of work, for drivers that are not of the workers' numeric kind."""

from dataclasses import dataclass

from pipeline.stages.context import RunContext
from pipeline.stages.heads import ensure_embeddings
from pipeline.stages.scoring_worker import ScoringWorker
from pipeline.stages.static import ensure_merged
from pipeline.stages.work import Report, WorkItem


class EmbedWorker(ScoringWorker):
    """Commits the heads of whole evaluation sets; for an item with a method, its static merge and that one's heads."""

    def run(self, item: WorkItem) -> Report:
        """Compute them unless they are there."""
        if item.method is None:
            ledger = ensure_embeddings(self.context, item.evaluation_set, self.models, self.device)
        else:
            ledger = ensure_merged(self.context, self.models, self.context.selected[item.method], self.device)
        return Report(item, samples=0, rejected=0, ledger=ledger)


@dataclass(frozen=True, slots=True)
class MakeEmbedWorker:
    """Factory of these workers."""

    context: RunContext

    def __call__(self) -> EmbedWorker:
        """Load the models in this process."""
        return EmbedWorker(self.context)
