"""What every worker that scores images holds: the source models on its device, in the run's numeric kind."""

from collections import Counter

import torch

from pipeline.errors import StaleCacheError
from pipeline.manifest.schema import Manifest
from pipeline.memory import return_large_blocks
from pipeline.models.architectures import AnyArchitecture, load_architecture
from pipeline.models.class_embeddings import HeadSource
from pipeline.models.numeric_kind import choose_device, kind_for_settings, require_kind
from pipeline.models.scorer import Scorer
from pipeline.models.sources import SourceModels, load_sources
from pipeline.stages.context import ModelsIdentity, RunContext
from pipeline.stages.heads import Heads, count_text, load_heads
from pipeline.store.fingerprints import digest_json
from pipeline.store.ledger import Ledger


class ScoringWorker:
    """Loads the models once per process, refuses a foreign numeric kind, and books what scoring costs."""

    def __init__(self, context: RunContext) -> None:
        return_large_blocks()
        self.context = context
        self.device = choose_device(context.manifest.compute.device)
        require_kind(kind_for_settings(**context.manifest.kind_settings), context.kind, where="worker")
        self.models = load_manifest_models(context.manifest)
        if identify(self.models) != context.models:
            raise StaleCacheError("models: a checkpoint changed while the run was under way; run the stage again")
        self.scorer = make_scorer(context.manifest, self.models, self.device)
        self._heads: dict[str, tuple[Heads, HeadSource | None]] = {}

    def heads(self, evaluation_set: str) -> Heads:
        """Heads of an evaluation set, read once."""
        if evaluation_set not in self._heads:
            self._heads[evaluation_set] = load_heads(self.context, evaluation_set, self.models, self.device)
        return self._heads[evaluation_set][0]

    def book(self, ledger: Ledger) -> None:
        """Move all counts since the last call into ``ledger``."""
        book_images(ledger, self.scorer)
        for _, source in self._heads.values():
            if source is not None:
                count_text(ledger, source)


def make_scorer(manifest: Manifest, models: SourceModels, device: torch.device) -> Scorer:
    """Scorer of ``models`` in the manifest's numeric kind."""
    compute = manifest.compute
    return Scorer(
        models,
        device=device,
        precision=manifest.precision,
        memory_format=compute.memory_format,
        compiled=compute.compile,
    )


def book_images(ledger: Ledger, scorer: Scorer) -> None:
    """Move a scorer's counts of image forwards into ``ledger``, and whether they were of less than a tile."""
    ledger.note_micro_batch(scorer.micro_batches.take_smallest())
    for name, counts in (
        ("image_forward_calls", scorer.forward_calls),
        ("image_forward_images", scorer.forward_images),
    ):
        ledger.per_model[name].update(Counter(counts))
        counts.update(dict.fromkeys(counts, 0))


def load_manifest_models(manifest: Manifest) -> SourceModels:
    """The manifest's source models, all of which it names."""
    named = {name: reference for name, reference in manifest.checkpoints.items() if reference is not None}
    return load_sources(manifest.architecture, named, manifest.models_section, manifest.classes)


def load_manifest_architecture(manifest: Manifest) -> AnyArchitecture:
    """The architecture that the manifest's models share."""
    return load_architecture(manifest.architecture, manifest.classes, key=f"{manifest.models_section}.architecture")


def identify(models: SourceModels) -> ModelsIdentity:
    """Digests of loaded models."""
    preprocessing = models.preprocessing
    stated = {
        "geometry": preprocessing.geometry.as_json(),
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    return ModelsIdentity(dict(models.digests), models.architecture.digest, digest_json(stated), models.has_text)
