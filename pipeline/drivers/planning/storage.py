"""What a run leaves on disk, and what one of its workers holds in memory."""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.drivers.planning.counts import Item, evidence_items, method_items
from pipeline.drivers.planning.sandbox import folder_bytes
from pipeline.drivers.planning.stages import Files
from pipeline.drivers.planning.subjects import Subject
from pipeline.drivers.planning.work import RunPlan
from pipeline.models.scorer import Scorer
from pipeline.models.sources import SourceModels
from pipeline.stages.precompute import STAGE
from pipeline.stages.reading import rows_per_read
from pipeline.stages.slices import cached_bytes

# In use by the device, and being read meanwhile.
BLOCKS_HELD = 2


def storage_rows(planned: RunPlan) -> list[dict[str, Any]]:
    """Bytes of each kind of file, left to write and in total; ``predictions`` by method."""
    return [{"what": what, "left": round(left), "total": round(total)} for what, left, total in _rows(planned)]


def _rows(planned: RunPlan) -> Iterator[tuple[str, float, float]]:
    costs, subjects = planned.costs, planned.subjects
    new = sum(costs.ingest[item.name].bytes * item.images(part) for item in subjects for part in item.unwritten)
    yield "archives", new, new + sum(folder_bytes(item.archive.path) for item in subjects if item.written)
    evidence = evidence_items(planned.context, planned.plans, subjects)
    yield "evidence", *_sizes(evidence, {name: (files.evidence,) for name, files in costs.files.items()})
    tables = planned.coefficient_files()
    yield "coefficients", sum(t.bytes for t in tables if not t.done), sum(t.bytes for t in tables)
    heads = [(item, costs.heads[item.name].bytes) for item in subjects]
    yield "embeddings", sum(size for item, size in heads if not planned.has_embeddings(item)), sum(s for _, s in heads)
    left, total = _sizes(evidence, {name: (files.beside[STAGE],) for name, files in costs.files.items()})
    for selected in planned.inferred:
        if selected.key in costs.static:
            size, path = costs.static[selected.key].bytes, planned.context.directory.merged(selected.variant)
            yield f"merged/{selected.key}", 0 if path.exists() else size, size
        items = method_items(planned.context, planned.plans, subjects, selected)
        if selected.method.combination == "grid":
            grids = {name: (files.grids[selected.key],) for name, files in costs.files.items()}
            yield f"grid/{selected.key}", *_sizes(items, grids)
        predictions = {name: (files.predictions[selected.key],) for name, files in costs.files.items()}
        yield f"predictions/{selected.key}", *_sizes(items, predictions)
        if selected.method.combination not in {"source", "ensemble"}:
            more = _sizes(items, {name: (files.beside[selected.key],) for name, files in costs.files.items()})
            left, total = left + more[0], total + more[1]
    yield "ledger and rejects", left, total


def _sizes(items: Sequence[Item], files: Files) -> tuple[float, float]:
    """Bytes left and in total."""
    sizes = [(item, sum(file.bytes(item.images) for file in files[item.evaluation_set])) for item in items]
    return sum(size for item, size in sizes if not item.done), sum(size for _, size in sizes)


def worker_memory(
    planned: RunPlan, models: SourceModels, scorer: Scorer, *, on_gpu: bool
) -> tuple[dict[str, int], dict[str, int] | None]:
    """Bytes of one worker beside Python and its libraries, and those on its GPU where it has one.

    ``models`` are the states as loaded and the module they share, and with them, or on the GPU, the ends and merged
    weights of the image towers, a static method's tower, and text towers where heads are no curve. ``pixels`` are
    those in use, read ahead, and kept decoded for rows out of order.
    """
    states = [*models.states.values(), models.model.state_dict()]
    loaded = sum(value.numel() * value.element_size() for state in states for value in state.values())
    pixels = {"pixels": max(_pixels(planned, subject) for subject in planned.subjects)}
    segment = scorer.segment
    towers = segment.bytes_held() + segment.bytes_shared() + sum(head.held for head in planned.costs.heads.values())
    if any(item.method.combination == "static" for item in planned.inferred):
        towers += segment.bytes_per_merge(ends=0) + segment.bytes_shared()
    scoring = {"models": towers, "activations": planned.pricing.device.activations}
    if on_gpu:
        return {"models": loaded, **pixels}, scoring
    return {**scoring, "models": loaded + scoring["models"], **pixels}, None


def _pixels(planned: RunPlan, subject: Subject) -> int:
    archive, compute = subject.archive, planned.context.manifest.compute
    image_bytes = archive.geometry.height * archive.geometry.width * 3
    limit = rows_per_read(archive, compute.read_bytes, compute.tile)
    largest = max(subject.images(part) for part in range(archive.parts))
    window = planned.context.windows(archive)[0]
    plans = [planned.plans.batches(subject, window, item) for item in planned.inferred if item.grouping is not None]
    kept = max((cached_bytes(batches, compute.read_bytes) for batches in plans), default=0)
    of_window = sum(subject.images(part) for part in window.part_numbers)
    return min(BLOCKS_HELD * limit, largest) * image_bytes + min(kept, of_window * image_bytes)
