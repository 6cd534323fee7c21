"""Class embeddings of a run: computed once per evaluation set, stored, and read by every worker.

Being stored, they are equal for all workers; both stages and online inference read the same bytes.
"""

from typing import Protocol

import numpy as np
import pyarrow as pa
import torch

from pipeline.models.class_embeddings import ClassHead, HeadCurve, TextTower, fill_templates, fit_head_curve
from pipeline.models.pair import Pair
from pipeline.stages.context import RunContext
from pipeline.stages.tables import fixed_size_lists, matrix_from_lists
from pipeline.stages.variants import embeddings_variant
from pipeline.store.files import write_json
from pipeline.store.ledger import Ledger
from pipeline.store.tables import PartState, part_state, read_metadata, read_table, write_table

CURVE, EXACT = "curve", "exact"
STAGE = "embed"


class Heads(Protocol):
    """Heads of one evaluation set at any λ."""

    def at(self, lam: float) -> ClassHead:
        """Head of θ(λ)."""
        ...


class ExactHeads:
    """Heads by a text forward at every λ that is not an end; the last one is kept."""

    def __init__(self, ends: HeadCurve, tower: TextTower, tokens: torch.Tensor, classes: int) -> None:
        self._ends, self._tower, self._tokens, self._classes = ends, tower, tokens, classes
        self._last: tuple[float, ClassHead] | None = None

    def at(self, lam: float) -> ClassHead:
        """Head of θ(λ)."""
        if lam in {0.0, 1.0}:
            return self._ends.at(lam)
        if self._last is None or self._last[0] != lam:
            self._last = (lam, self._tower.head(lam, self._tokens, self._classes))
        return self._last[1]


def ensure_embeddings(context: RunContext, name: str, pair: Pair, device: torch.device) -> Ledger:
    """Compute and commit an evaluation set's class embeddings unless they are there; the ledger says what it cost.

    With a merged text tower: the curve's nodes, or only both ends where the curve missed its tolerance. With the
    generalist's: one head, stored at both ends.
    """
    archive = context.archive(name)
    variant = embeddings_variant(name, context.manifest.prompts)
    path, fingerprint = context.directory.embeddings(variant), context.embeddings_fingerprint(name, archive)
    ledger = Ledger()
    if part_state(path, fingerprint) is PartState.COMMITTED:
        return ledger
    class_names = context.class_names(name, archive)
    prompts = context.manifest.prompts
    tokens = _tokens(context, pair, class_names)
    tower = TextTower(pair, merged=prompts.text_tower == "merged", device=device)
    with ledger.phase("text"):
        curve = None
        if prompts.embeddings == CURVE and prompts.text_tower == "merged":
            curve = fit_head_curve(tower, tokens, len(class_names), tolerance=prompts.curve_tolerance)
        kind = EXACT if curve is None and prompts.text_tower == "merged" else CURVE
        if curve is None:
            curve = HeadCurve.through(tower, np.array([0.0, 1.0]), tokens, len(class_names))
    _count(ledger, tower)
    write_json(context.directory.ledger(STAGE, name, 0), ledger.as_json())
    extra = {"kind": kind, "logit_error": repr(curve.error)}
    context.directory.write_variant(path.parent, variant)
    write_table(path, _table(curve, class_names), fingerprint, extra)
    return ledger


def load_heads(context: RunContext, name: str, pair: Pair, device: torch.device) -> tuple[Heads, TextTower | None]:
    """Heads from the stored embeddings, and the text tower when every λ needs it."""
    archive = context.archive(name)
    path = context.directory.embeddings(embeddings_variant(name, context.manifest.prompts))
    assert part_state(path, context.embeddings_fingerprint(name, archive)) is PartState.COMMITTED
    metadata = read_metadata(path)
    assert metadata is not None
    curve = _curve(read_table(path))
    if metadata.extra["kind"] == CURVE:
        return curve, None
    class_names = context.class_names(name, archive)
    tower = TextTower(pair, merged=True, device=device)
    return ExactHeads(curve, tower, _tokens(context, pair, class_names), len(class_names)), tower


def _count(ledger: Ledger, tower: TextTower) -> None:
    ledger.per_model["text_forward_calls"]["merged"] += tower.forward_calls
    ledger.per_model["text_forward_images"]["merged"] += tower.forward_prompts


def _tokens(context: RunContext, pair: Pair, class_names: list[str]) -> torch.Tensor:
    return pair.architecture.tokenize(fill_templates(class_names, context.manifest.prompts.templates))


def _table(curve: HeadCurve, class_names: list[str]) -> pa.Table:
    nodes, classes, width = curve.embeddings_KCD.shape
    return pa.table(
        {
            "lambda": np.repeat(curve.lambdas, classes),
            "class_name": pa.array(class_names * nodes, pa.string()),
            "embedding": fixed_size_lists(curve.embeddings_KCD.reshape(-1, width)),
            "logit_scale": np.repeat(curve.scales, classes),
            "logit_bias": np.repeat(curve.biases, classes),
        }
    )


def _curve(table: pa.Table) -> HeadCurve:
    lambdas = table["lambda"].to_numpy()
    classes = int((lambdas == lambdas[0]).sum())
    embeddings = matrix_from_lists(table["embedding"])
    return HeadCurve(
        lambdas=lambdas[::classes],
        embeddings_KCD=embeddings.reshape(-1, classes, embeddings.shape[1]),
        scales=table["logit_scale"].to_numpy()[::classes],
        biases=table["logit_bias"].to_numpy()[::classes],
    )
