"""Classification heads of a run: computed once per evaluation set, stored, and read by every worker.

Being stored, they are equal for all workers; both stages and online inference read the same bytes. For CLIP a head is
the class embeddings of a text tower, for a classifier its last layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pipeline.manifest.schema import ROLES
from pipeline.models.architectures import Architecture
from pipeline.models.class_embeddings import (
    ClassHead,
    HeadSource,
    LinearHeads,
    TextTower,
    blend_heads,
    fill_templates,
)
from pipeline.models.head_curve import HeadCurve, fit_head_curve
from pipeline.models.scorer import MERGED
from pipeline.models.sources import SourceModels
from pipeline.stages.context import RunContext
from pipeline.stages.selection import embeddings_variant
from pipeline.stages.tables import fixed_size_lists, matrix_from_lists
from pipeline.store.files import write_json
from pipeline.store.ledger import Ledger
from pipeline.store.tables import PartState, part_state, read_metadata, read_table, write_table

CURVE, EXACT = "curve", "exact"
STAGE = "embed"
# A head with the source that it belongs to, else with its λ.
type HeadRow = tuple[str, float | None, ClassHead]


@dataclass(slots=True)
class Heads:
    """Heads of one evaluation set: each source's own, in order, and what lies between generalist and expert.

    ``exact`` computes a head at λ where the curve missed its tolerance; the last one is kept.
    """

    sources: tuple[ClassHead, ...]
    curve: HeadCurve | None
    exact: HeadSource | None
    weights_at: Callable[[float], Sequence[float]]
    _last: tuple[float, ClassHead] | None = None

    def at(self, lam: float) -> ClassHead:
        """Head of θ(λ), of a merged text tower where it is merged."""
        assert self.curve is not None, "methods with a λ require a pair"
        if self.exact is None or lam in {0.0, 1.0}:
            return self.curve.at(lam)
        if self._last is None or self._last[0] != lam:
            self._last = (lam, self.exact.head(self.weights_at(lam)))
        return self._last[1]

    def blend(self, weights: Sequence[float]) -> ClassHead:
        """The sources' own heads, weighted: the head as a component of its own."""
        return blend_heads(self.sources, weights)


def ensure_embeddings(context: RunContext, name: str, models: SourceModels, device: torch.device) -> Ledger:
    """Compute and commit an evaluation set's heads unless they are there; the ledger says what it cost.

    For a pair with a merged text tower: the curve's nodes, or only both ends where the curve missed its tolerance. With
    the generalist's: one head, stored at both ends. For every further source its own head.
    """
    archive = context.archive(name)
    variant = embeddings_variant(name, context.manifest.prompts)
    path, fingerprint = context.directory.embeddings(variant), context.embeddings_fingerprint(name, archive)
    ledger = Ledger()
    if part_state(path, fingerprint) is PartState.COMMITTED:
        return ledger
    class_names = context.class_names(name, archive)
    source = open_head_source(context, name, models, device)
    extra = {"kind": CURVE, "logit_error": repr(0.0)}
    rows: list[HeadRow] = []
    with ledger.phase("text"):
        if context.manifest.is_pair:
            curve, extra["kind"] = _curve_of_pair(context, source)
            extra["logit_error"] = repr(curve.error)
            rows += [("", float(lam), curve.at(float(lam))) for lam in curve.lambdas]
        for position, other in enumerate(context.sources):
            if not context.manifest.is_pair or other not in ROLES:
                rows.append((other, None, source.head(_vertex(position, len(context.sources)))))
    count_text(ledger, source)
    write_json(context.directory.ledger(STAGE, name, 0), ledger.as_json())
    context.directory.write_variant(path.parent, variant)
    write_table(path, heads_table(rows, class_names), fingerprint, extra)
    return ledger


def load_heads(
    context: RunContext, name: str, models: SourceModels, device: torch.device
) -> tuple[Heads, HeadSource | None]:
    """Heads from the stored embeddings, and the text tower when every λ needs it."""
    archive = context.archive(name)
    path = context.directory.embeddings(embeddings_variant(name, context.manifest.prompts))
    assert part_state(path, context.embeddings_fingerprint(name, archive)) is PartState.COMMITTED
    metadata = read_metadata(path)
    assert metadata is not None
    rows = read_heads(read_table(path))
    nodes = [(lam, head) for _, lam, head in rows if lam is not None]
    curve = _curve_through(nodes) if nodes else None
    own = {source: head for source, lam, head in rows if lam is None}
    if curve is not None:
        own |= {ROLES[0]: curve.at(0.0), ROLES[1]: curve.at(1.0)}
    exact = open_head_source(context, name, models, device) if metadata.extra["kind"] == EXACT else None
    heads = Heads(tuple(own[source] for source in context.sources), curve, exact, context.weights_at)
    return heads, exact


def open_head_source(context: RunContext, name: str, models: SourceModels, device: torch.device) -> HeadSource:
    """What computes heads of an evaluation set at any weights of the sources of ``models``."""
    if not isinstance(models.architecture, Architecture):
        return LinearHeads(models)
    prompts = context.manifest.prompts
    class_names = context.class_names(name, context.archive(name))
    tokens = models.architecture.tokenize(fill_templates(class_names, prompts.templates))
    # What a static merge made holds its text tower already, whichever it is.
    merged = prompts.text_tower == "merged" or models.names != context.sources
    return TextTower(models, tokens, len(class_names), merged=merged, device=device)


def heads_table(rows: Sequence[HeadRow], class_names: list[str]) -> pa.Table:
    """Heads as a table of classes: each row of ``rows`` is a source's name or a λ, and its head."""
    classes = len(class_names)
    heads = [head for _, _, head in rows]
    return pa.table(
        {
            "source": pa.array([source or None for source, _, _ in rows for _ in range(classes)], pa.string()),
            "lambda": pa.array([lam for _, lam, _ in rows for _ in range(classes)], pa.float64()),
            "class_name": pa.array(class_names * len(rows), pa.string()),
            "embedding": fixed_size_lists(np.concatenate([head.embeddings_CD.cpu().numpy() for head in heads])),
            "logit_scale": np.repeat([head.logit_scale for head in heads], classes),
            "logit_bias": np.concatenate([head.logit_bias.cpu().numpy() for head in heads]),
            "cosine": np.repeat([head.cosine for head in heads], classes),
        }
    )


def read_heads(table: pa.Table) -> list[HeadRow]:
    """Heads as :func:`heads_table` wrote them."""
    names = table["class_name"].to_pylist()
    classes = len(set(names))
    found = []
    for start in range(0, len(table), classes):
        rows = table.slice(start, classes)
        head = ClassHead(
            embeddings_CD=torch.from_numpy(matrix_from_lists(rows["embedding"]).copy()),
            logit_scale=rows["logit_scale"][0].as_py(),
            logit_bias=torch.from_numpy(rows["logit_bias"].to_numpy().copy()),
            cosine=rows["cosine"][0].as_py(),
        )
        found.append((rows["source"][0].as_py() or "", rows["lambda"][0].as_py(), head))
    return found


def count_text(ledger: Ledger, source: HeadSource) -> None:
    """Book the text forwards of ``source`` so far, and begin anew."""
    ledger.per_model["text_forward_calls"][MERGED] += source.forward_calls
    ledger.per_model["text_forward_images"][MERGED] += source.forward_prompts
    source.forward_calls = source.forward_prompts = 0


def _curve_of_pair(context: RunContext, source: HeadSource) -> tuple[HeadCurve, str]:
    """Heads from generalist to expert, and whether they are a curve or only its ends."""
    prompts = context.manifest.prompts
    ends = np.array([0.0, 1.0])
    if prompts.text_tower == "generalist" and context.models.has_text:
        return HeadCurve.through(source, ends, context.weights_at), CURVE
    if prompts.embeddings == CURVE:
        curve = fit_head_curve(source, tolerance=prompts.curve_tolerance, weights_at=context.weights_at)
        if curve is not None:
            return curve, CURVE
    return HeadCurve.through(source, ends, context.weights_at), EXACT


def _curve_through(nodes: Sequence[tuple[float, ClassHead]]) -> HeadCurve:
    heads = [head for _, head in nodes]
    return HeadCurve(
        lambdas=np.array([lam for lam, _ in nodes]),
        embeddings_KCD=np.stack([head.embeddings_CD.numpy() for head in heads]),
        scales=np.array([head.logit_scale for head in heads]),
        biases=np.stack([head.logit_bias.numpy() for head in heads]).astype(np.float64),
        cosine=heads[0].cosine,
    )


def _vertex(position: int, count: int) -> tuple[float, ...]:
    return tuple(float(index == position) for index in range(count))
