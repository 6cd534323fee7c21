"""What every worker that scores images holds: the pair on its device, in the run's numeric kind."""

from collections import Counter

from pipeline.errors import StaleCacheError
from pipeline.models.class_embeddings import TextTower
from pipeline.models.numeric_kind import choose_device, kind_for_settings, require_kind
from pipeline.models.pair import Pair, load_pair
from pipeline.models.scorer import Scorer
from pipeline.stages.context import PairIdentity, RunContext
from pipeline.stages.heads import Heads, load_heads
from pipeline.stages.memory import return_large_blocks
from pipeline.store.fingerprints import digest_json
from pipeline.store.ledger import Ledger


class ScoringWorker:
    """Loads the pair once per process, refuses a foreign numeric kind, and books what scoring costs."""

    def __init__(self, context: RunContext) -> None:
        return_large_blocks()
        self.context = context
        compute, settings = context.manifest.compute, context.manifest.pair
        self.device = choose_device(compute.device)
        kind = kind_for_settings(
            compute.device, precision=settings.precision, threads=compute.threads, tile=compute.tile
        )
        require_kind(kind, context.kind, where="worker")
        self.pair = load_manifest_pair(context)
        self.scorer = Scorer(self.pair, device=self.device, precision=settings.precision)
        self._heads: dict[str, tuple[Heads, TextTower | None]] = {}

    def heads(self, evaluation_set: str) -> Heads:
        """Heads of an evaluation set, read once."""
        if evaluation_set not in self._heads:
            self._heads[evaluation_set] = load_heads(self.context, evaluation_set, self.pair, self.device)
        return self._heads[evaluation_set][0]

    def book(self, ledger: Ledger) -> None:
        """Move all counts since the last call into ``ledger``."""
        scorer = self.scorer
        for name, counts in (
            ("image_forward_calls", scorer.forward_calls),
            ("image_forward_images", scorer.forward_images),
        ):
            ledger.per_model[name].update(counts)
            counts.update(dict.fromkeys(counts, 0))
        for _, tower in self._heads.values():
            if tower is not None:
                ledger.per_model["text_forward_calls"] += Counter(merged=tower.forward_calls)
                ledger.per_model["text_forward_images"] += Counter(merged=tower.forward_prompts)
                tower.forward_calls = tower.forward_prompts = 0


def load_manifest_pair(context: RunContext) -> Pair:
    """The manifest's pair; :class:`StaleCacheError` when a file changed since the run was opened."""
    settings = context.manifest.pair
    assert settings.expert is not None, "opening a run requires both ends"
    pair = load_pair(settings.architecture, settings.generalist, settings.expert)
    if identify(pair) != context.pair:
        raise StaleCacheError("pair: a checkpoint changed while the run was under way; run the stage again")
    return pair


def identify(pair: Pair) -> PairIdentity:
    """Digests of a loaded pair."""
    preprocessing = pair.preprocessing
    stated = {
        "geometry": preprocessing.geometry.as_json(),
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    return PairIdentity(
        generalist=pair.generalist_digest,
        expert=pair.expert_digest,
        architecture=pair.architecture.digest,
        preprocessing=digest_json(stated),
    )
