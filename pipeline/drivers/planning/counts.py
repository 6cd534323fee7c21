"""What each item of work costs in operations, counted as its ledger will count them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archives.archive import Window
from pipeline.drivers.planning.batches import BatchPlans
from pipeline.drivers.planning.decoding import WindowReader
from pipeline.drivers.planning.subjects import Subject
from pipeline.manifest.schema import ROLES
from pipeline.stages.context import EXACT, RunContext
from pipeline.stages.grid import grid_lambdas
from pipeline.stages.infer import committed_slices, is_committed_part, tile_of
from pipeline.stages.plan import batches_of_slice, covered_rows, window_rows
from pipeline.stages.reading import rows_per_read, shared_reads
from pipeline.stages.selection import Selected
from pipeline.stages.slices import cached_bytes
from pipeline.stages.tables import matrix_from_lists

Weights = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Item:
    """One part's or slice's work.

    ``weights`` [M, K] are what models are merged at, in order, and ``lambdas`` [L] those for which a head is asked;
    ``decoded`` are the images that must be decoded to read its own. ``done``: it is committed.
    """

    evaluation_set: str
    part: int
    images: int
    calls: int
    forward_images: int
    tile: int
    decoded: int
    blocks: int
    batches: int
    weights: Weights
    lambdas: NDArray[np.float64]
    done: bool

    @classmethod
    def of_images(cls, evaluation_set: str = "", part: int = 0, images: int = 0) -> "Item":
        """Work without any model."""
        nothing = np.empty(0)
        return cls(evaluation_set, part, images, 0, 0, 1, 0, 0, 0, nothing.reshape(0, 1), nothing, done=False)


@dataclass(slots=True)
class MergeCounter:
    """Counts the merges and exact heads of a worker, which keeps what it merged last, ``ahead`` the last two."""

    exact_heads: frozenset[str]
    ahead: bool
    _held: list[bytes | None] = field(default_factory=lambda: [None, None])
    _in_use: int | None = None
    _lambdas: dict[str, float] = field(default_factory=dict)

    def merges(self, item: Item) -> int:
        """Merges of an item's image towers: none at an end, none where the weights are there already.

        As :class:`~pipeline.merging.segment.Segment` decides it, whose choice of a buffer depends on the one in use.
        """
        if not len(item.weights):
            return 0
        changes = np.append(True, (np.diff(item.weights, axis=0) != 0).any(axis=1))
        merged = 0
        for weights in item.weights[changes]:
            if np.count_nonzero(weights) == 1:
                self._in_use = None
                continue
            key = weights.tobytes()
            if key not in self._held:
                free = 1 if self.ahead and self._in_use == 0 else 0
                self._held[free] = key
                merged += 1
            self._in_use = self._held.index(key)
        return merged

    def heads(self, item: Item) -> int:
        """Text forwards of an item, where heads are no curve but made for every λ."""
        if item.evaluation_set not in self.exact_heads:
            return 0
        inner = item.lambdas[(item.lambdas > 0) & (item.lambdas < 1)]
        if not len(inner):
            return 0
        changed = int((np.diff(inner) != 0).sum()) + int(self._lambdas.get(item.evaluation_set) != inner[0])
        self._lambdas[item.evaluation_set] = float(inner[-1])
        return changed


def evidence_items(context: RunContext, plans: BatchPlans, subjects: Iterable[Subject]) -> list[Item]:
    """Stage one's parts."""
    compute, sources = context.manifest.compute, len(context.sources)
    return [
        _part_item(
            context,
            subject,
            part,
            images=subject.images(part),
            models=sources,
            tile=compute.tile,
            done=part in plans.committed(subject),
        )
        for subject in subjects
        for part in range(subject.archive.parts)
    ]


def method_items(context: RunContext, plans: BatchPlans, subjects: Iterable[Subject], selected: Selected) -> list[Item]:
    """A method's slices or parts in the order in which one worker runs them."""
    if selected.method.combination == "batch":
        return [
            item
            for subject in subjects
            for window in context.windows(subject.archive)
            for item in _slices(context, plans, subject, window, selected)
        ]
    return [
        _unbatched(context, plans, subject, part, selected)
        for subject in subjects
        for part in range(subject.archive.parts)
    ]


def _unbatched(context: RunContext, plans: BatchPlans, subject: Subject, part: int, selected: Selected) -> Item:
    compute, kind = context.manifest.compute, selected.method.combination
    images, done = plans.images(subject, part), _is_committed(context, plans, subject, part, selected)
    if kind == "grid":
        inner = grid_lambdas(selected)[1:-1]
        item = _part_item(context, subject, part, images=images, models=len(inner), tile=compute.tile, done=done)
        asked = np.tile(np.array(inner, dtype=np.float64), item.blocks)
        weights = np.array([context.weights_at(lam) for lam in asked]).reshape(len(asked), len(context.sources))
        return replace(item, weights=weights, lambdas=asked)
    models = int(kind == "static")
    return _part_item(context, subject, part, images=images, models=models, tile=compute.tile, done=done)


def _is_committed(context: RunContext, plans: BatchPlans, subject: Subject, part: int, selected: Selected) -> bool:
    """Whether a part of a method without batches is there; evidence that is to be measured again has the same rows."""
    if part in subject.unwritten:
        return False
    known = part in plans.committed(subject)
    rows = covered_rows(context.directory.evidence(subject.name, part)) if known else None
    return is_committed_part(context, subject.name, subject.archive, part, selected, rows)


def _part_item(
    context: RunContext, subject: Subject, part: int, *, images: int, models: int, tile: int, done: bool
) -> Item:
    limit = rows_per_read(subject.archive, context.manifest.compute.read_bytes, tile)
    read = images if models else 0
    return Item(
        evaluation_set=subject.name,
        part=part,
        images=images,
        calls=models * -(-images // tile),
        forward_images=models * images,
        tile=tile,
        decoded=read,
        blocks=-(-read // limit),
        batches=0,
        weights=np.empty((0, len(context.sources))),
        lambdas=np.empty(0),
        done=done,
    )


def _slices(
    context: RunContext, plans: BatchPlans, subject: Subject, window: Window, selected: Selected
) -> Iterator[Item]:
    batches = plans.batches(subject, window, selected)
    done = _committed_slices(context, plans, subject, window, selected)
    # What is left starts with nothing decoded, whatever was kept for those slices that are done.
    room = cached_bytes(batches, context.manifest.compute.read_bytes)
    readers = {is_done: WindowReader(subject.archive, room) for is_done in (False, True)}
    for part in window.part_numbers:
        chosen = batches_of_slice(batches, window, subject.archive.part_rows, part)
        yield _slice_item(context, subject, part, selected, chosen, readers[part in done], done=part in done)


def _slice_item(
    context: RunContext,
    subject: Subject,
    part: int,
    selected: Selected,
    batches: pa.Table,
    reader: WindowReader,
    *,
    done: bool,
) -> Item:
    tile, sizes = tile_of(context, selected), batches["size"].to_numpy().astype(np.int64)
    exact = context.implementation(selected) == EXACT
    images = int(sizes.sum())
    limit = rows_per_read(subject.archive, context.manifest.compute.read_bytes, tile)
    read_sizes = [sum(piece.stop - piece.start for piece in read) for read in shared_reads(sizes.tolist(), limit)]
    rows = batches["rows"].combine_chunks().flatten().to_numpy()
    calls = -(-np.array(read_sizes, dtype=np.int64) // tile) * len(ROLES) if exact else -(-sizes // tile)
    lambdas = batches["lambda"].fill_null(np.nan).to_numpy().astype(np.float64)
    return Item(
        evaluation_set=subject.name,
        part=part,
        images=images,
        calls=int(calls.sum()),
        forward_images=len(ROLES) * images if exact else images,
        tile=tile,
        decoded=sum(reader.decode(block) for block in np.split(rows, np.cumsum(read_sizes[:-1], dtype=np.int64))),
        blocks=len(read_sizes),
        batches=len(sizes),
        weights=np.empty((0, len(context.sources))) if exact else _weights(context, batches, lambdas),
        lambdas=np.empty(0) if selected.weighs_sources else lambdas,
        done=done,
    )


def _weights(context: RunContext, batches: pa.Table, lambdas: NDArray[np.float64]) -> Weights:
    if "weights_encoder" in batches.column_names:
        return matrix_from_lists(batches["weights_encoder"]).astype(np.float64)
    weights = np.zeros((len(lambdas), len(context.sources)))
    for role, values in zip(ROLES, (1.0 - lambdas, lambdas), strict=True):
        weights[:, context.sources.index(role)] = values
    return weights


def _committed_slices(
    context: RunContext, plans: BatchPlans, subject: Subject, window: Window, selected: Selected
) -> frozenset[int]:
    """Slices of a window whose predictions are there; without evidence, those that online inference left."""
    if subject.unwritten.intersection(window.part_numbers):
        return frozenset()
    known = plans.committed(subject).issuperset(window.part_numbers)
    evidence = [context.directory.evidence(subject.name, part) for part in window.part_numbers]
    rows = window_rows([covered_rows(path) for path in evidence]) if known else None
    return committed_slices(context, subject.name, subject.archive, window, selected, rows)
