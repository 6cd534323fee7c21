"""Static merges: one model for the whole run, merged once, stored in the run, then scored like a plain model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import ManifestError, StaleCacheError, one_line
from pipeline.manifest.schema import ROLES
from pipeline.merging.distances import IMAGE_SIDE
from pipeline.merging.static import draw_mixup_lambda, linear, slerp, task_arithmetic, ties
from pipeline.models.checkpoints import digest_weights, write_checkpoint
from pipeline.models.class_embeddings import ClassHead
from pipeline.models.scorer import MERGED, Scorer
from pipeline.models.sources import SourceModels
from pipeline.stages.context import RunContext
from pipeline.stages.heads import count_text, heads_table, open_head_source, read_heads
from pipeline.stages.plan import evidence_rows
from pipeline.stages.scoring import Predictions, score_part
from pipeline.stages.scoring_worker import book_images
from pipeline.stages.selection import SEED, Selected
from pipeline.stages.tables import predictions_table
from pipeline.store.files import write_json
from pipeline.store.fingerprints import Fingerprint
from pipeline.store.ledger import Ledger
from pipeline.store.tables import PartState, part_state, read_table, write_table

STAGE = "merge"
# One entry and not several: safetensors writes entries in an order of its own, another one each time.
HEADER = "pipeline.merge"
# Beside the weights, for people: what was merged how, and the λ that mixup drew.
RECORD = "merge.json"
# No evaluation set can have this name.
WEIGHTS = "@weights"
State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class StaticMerge:
    """A merged model's whole state dict, and its place between generalist and expert where it has one."""

    state: dict[str, Tensor]
    lam: float | None


def merge_statically(models: SourceModels, selected: Selected, text_tower: str) -> StaticMerge:
    """Merge once, as the method says. With the generalist's text tower, only image towers are merged.

    Raises ValueError for a method that merges per batch, and :class:`ManifestError` when what comes out is no model:
    extrapolation can turn a variance negative.
    """
    states = list(models.states.values())
    whole = text_tower == "merged" or not models.has_text
    kept = [key for key in states[0] if whole or key.startswith(IMAGE_SIDE)]
    merged, lam = _merge(selected, {name: _only(kept, state) for name, state in models.states.items()})
    base = models.states.get(ROLES[0], states[0])
    for key, value in merged.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ManifestError(f"method {selected.key}: {key} is not finite after merging; choose another scale")
        if key.endswith("running_var") and (value < 0).any():
            raise ManifestError(f"method {selected.key}: {key} is negative after merging; choose a smaller scale")
    return StaticMerge({key: merged.get(key, value) for key, value in base.items()}, lam)


def _merge(selected: Selected, states: Mapping[str, State]) -> tuple[dict[str, Tensor], float | None]:
    everyone = list(states.values())
    if selected.method.name == "mean":
        return linear(everyone, [1.0 / len(everyone)] * len(everyone)), None
    generalist = states[ROLES[0]]
    experts = [state for name, state in states.items() if name != ROLES[0]]
    match selected.method.name:
        case "soup":
            lam = selected.number("alpha")
        case "mixup":
            lam = draw_mixup_lambda(
                selected.settings["distribution"],  # type: ignore[arg-type]
                selected.number("alpha"),
                int(selected.variant.settings[SEED]),
            )
        case "slerp":
            return slerp(generalist, states[ROLES[1]], selected.number("alpha")), None
        case "task-arithmetic":
            scale = selected.number("scale")
            on_the_line = len(experts) == 1 and scale <= 1
            return task_arithmetic(generalist, experts, scale), scale if on_the_line else None
        case "ties":
            density, scale = selected.number("density"), selected.number("scale")
            return ties(generalist, experts, density=density, scale=scale), None
        case _:
            raise ValueError(f"{selected.method.name!r} merges per batch: it is no single model")
    return linear([generalist, states[ROLES[1]]], [1.0 - lam, lam]), lam


def ensure_merged(context: RunContext, models: SourceModels, selected: Selected, device: torch.device) -> Ledger:
    """Merge once and commit weights and heads of all evaluation sets, unless they are there; say what it cost."""
    directory, total = context.directory, Ledger()
    path, fingerprint = directory.merged(selected.variant), context.merged_fingerprint(selected)
    if not _is_merged(path, fingerprint):
        ledger = Ledger()
        with ledger.phase("merge"):
            merge = merge_statically(models, selected, context.manifest.prompts.text_tower)
        ledger.totals["merges"] += 1
        # Before the weights, so that a run killed in between counts no merge less.
        write_json(directory.ledger(ledger_stage(selected), WEIGHTS, 0), ledger.as_json())
        made_by = {"method": selected.method.name, "settings": dict(selected.variant.settings), "lambda": merge.lam}
        write_json(path.with_name(RECORD), {**made_by, "sources": dict(models.digests)})
        # safetensors has no checksum of its own: the digest finds a flipped bit before it is scored with.
        header = {"inputs": dict(fingerprint.inputs), "lambda": merge.lam, "digest": digest_weights(merge.state)}
        directory.write_variant(path.parent, selected.variant)
        write_checkpoint(path, merge.state, {HEADER: json.dumps(header, sort_keys=True)})
        total.add(ledger)
    single: SourceModels | None = None
    for item in context.manifest.evaluation_sets:
        archive = context.archive(item.name)
        wanted = context.merged_head_fingerprint(item.name, archive, selected)
        head_path = directory.merged_head(selected.variant, item.name)
        if part_state(head_path, wanted) is PartState.COMMITTED:
            continue
        single = single or models.with_single(MERGED, read_merged(path).state)
        ledger = Ledger()
        source = open_head_source(context, item.name, single, device)
        with ledger.phase("text"):
            head = source.head((1.0,))
        count_text(ledger, source)
        write_json(directory.ledger(ledger_stage(selected), item.name, 0), ledger.as_json())
        write_table(head_path, heads_table([(MERGED, None, head)], context.class_names(item.name, archive)), wanted)
        total.add(ledger)
    return total


def ledger_stage(selected: Selected) -> str:
    """Where the ledger of a static merge lies."""
    return f"{STAGE}/{selected.key}"


def read_merged(path: Path) -> StaticMerge:
    """Read what :func:`ensure_merged` committed; StaleCacheError for a file that is torn or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(file)
            merge = StaticMerge({key: file.get_tensor(key) for key in file.keys()}, header["lambda"])  # noqa: SIM118
        intact = digest_weights(merge.state) == header["digest"]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise StaleCacheError(f"{path}: cannot be read ({one_line(error)}); delete this file and run again") from error
    if not intact:
        raise StaleCacheError(f"{path}: its weights are not those that were written; delete this file and run again")
    return merge


class StaticScorer:
    """A static merge on the device, and its head for each evaluation set.

    It runs with the settings of ``beside``, the scorer of the sources in the same process.
    """

    def __init__(self, context: RunContext, models: SourceModels, selected: Selected, beside: Scorer) -> None:
        self._context, self._selected = context, selected
        merge = read_merged(context.directory.merged(selected.variant))
        self._lam = np.float32(np.nan if merge.lam is None else merge.lam)
        self._scorer = beside.alike(models.with_single(MERGED, merge.state))

    def score(self, name: str, part: int, ledger: Ledger) -> Predictions:
        """Predictions and rejects of one archive part."""
        context, archive = self._context, self._context.archive(name)
        head, compute = self._head(name), context.manifest.compute
        scored = score_part(
            archive,
            part,
            lambda pixels: self._scorer.source_logits(pixels, [head], tile=compute.tile),
            rows=evidence_rows(context, name, part),
            models=1,
            tile=compute.tile,
            compute=compute,
            ledger=ledger,
        )
        book_images(ledger, self._scorer)
        table = predictions_table(
            scored.samples,
            batch=None,
            lam=np.full(len(scored.samples), self._lam),
            logits=scored.logits[0],
            class_names=context.class_names(name, archive),
        )
        return Predictions(table, scored.rejects)

    def _head(self, name: str) -> ClassHead:
        return read_heads(read_table(self._context.directory.merged_head(self._selected.variant, name)))[0][2]


def _is_merged(path: Path, fingerprint: Fingerprint) -> bool:
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            cached = _header(file).get("inputs", {})
    except (SafetensorError, OSError, ValueError):
        return False
    if changed := fingerprint.changed_inputs(cached):
        raise StaleCacheError(
            f"{path}: {', '.join(changed)} changed since it was merged; give another 'output', or delete this folder"
        )
    return True


def _header(file: Any) -> dict[str, Any]:
    header: dict[str, Any] = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    return header


def _only(keys: Sequence[str], state: State) -> dict[str, Tensor]:
    return {key: state[key] for key in keys}
