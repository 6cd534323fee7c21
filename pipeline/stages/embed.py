"""Class embeddings as an item of work, for drivers that are not of the workers' numeric kind."""

from dataclasses import dataclass

from pipeline.stages.context import RunContext
from pipeline.stages.heads import ensure_embeddings
from pipeline.stages.scoring_worker import ScoringWorker
from pipeline.stages.work import Report, WorkItem


class EmbedWorker(ScoringWorker):
    """Commits the class embeddings of whole evaluation sets."""

    def run(self, item: WorkItem) -> Report:
        """Compute one set's class embeddings unless they are there."""
        ledger = ensure_embeddings(self.context, item.evaluation_set, self.pair, self.device)
        return Report(item, samples=0, rejected=0, ledger=ledger)


@dataclass(frozen=True, slots=True)
class MakeEmbedWorker:
    """Factory of the workers that compute class embeddings."""

    context: RunContext

    def __call__(self) -> EmbedWorker:
        """Load the pair in this process."""
        return EmbedWorker(self.context)
