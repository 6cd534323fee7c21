"""What heads and static merges cost: they are made once, in a sandbox, by what makes them in the run."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.drivers.planning.sandbox import Sandbox, folder_bytes
from pipeline.models.scorer import MERGED
from pipeline.models.sources import SourceModels
from pipeline.stages.heads import Heads, ensure_embeddings, load_heads
from pipeline.stages.selection import Selected, embeddings_variant
from pipeline.stages.static import ensure_merged


@dataclass(frozen=True, slots=True)
class HeadPrice:
    """Heads of one set: what all of them took in seconds, text forwards of so many ``prompts`` each, and bytes.

    ``exact``: they are no curve, so that every λ needs a text forward of its own, of towers of ``held`` bytes.
    """

    heads: Heads
    seconds: float
    calls: int
    prompts: int
    exact: bool
    held: int
    bytes: int

    @property
    def per_call(self) -> float:
        """Seconds of one text forward."""
        return self.seconds / max(self.calls, 1)


@dataclass(frozen=True, slots=True)
class StaticPrice:
    """One merge for the whole run: seconds without its heads, text forwards for a set's head, bytes of the weights."""

    seconds: float
    calls: int
    bytes: int


def measure_heads(
    sandbox: Sandbox, models: SourceModels, device: torch.device, report: Callable[[str], None]
) -> dict[str, HeadPrice]:
    """Heads of every set with images; sets with the same class names share them."""
    context, prices = sandbox.context, {}
    for name in dict.fromkeys(sandbox.representatives.values()):
        report(f"class embeddings of {name}")
        start = time.perf_counter()
        ledger = ensure_embeddings(context, name, models, device)
        seconds = time.perf_counter() - start
        heads, source = load_heads(context, name, models, device)
        calls = ledger.per_model["text_forward_calls"][MERGED]
        prompts = ledger.per_model["text_forward_images"][MERGED] // max(calls, 1)
        path = context.directory.embeddings(embeddings_variant(name, context.manifest.prompts))
        held = 0 if source is None else source.bytes_held()
        prices[name] = HeadPrice(heads, seconds, calls, prompts, source is not None, held, path.stat().st_size)
    return {name: prices[first] for name, first in sandbox.representatives.items()}


def measure_static(
    sandbox: Sandbox, models: SourceModels, selected: Selected, device: torch.device, report: Callable[[str], None]
) -> StaticPrice:
    """Merge once as ``selected`` says, with the heads of the sandbox's sets."""
    report(f"merging {selected.key}")
    start = time.perf_counter()
    ledger = ensure_merged(sandbox.context, models, selected, device)
    seconds = time.perf_counter() - start - ledger.seconds["text"]
    sets = len(sandbox.context.manifest.evaluation_sets)
    folder = sandbox.context.directory.merged(selected.variant).parent
    return StaticPrice(seconds, ledger.per_model["text_forward_calls"][MERGED] // sets, folder_bytes(folder))
