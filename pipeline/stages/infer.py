"""Stage two: the batches of one slice of a plan, each scored by its own merged model, to predictions."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archives.archive import Archive, Window
from pipeline.archives.shards import ChunkCache
from pipeline.manifest.schema import ROLES
from pipeline.models.scorer import Scorer
from pipeline.stages.context import EXACT, RunContext
from pipeline.stages.grid import GridScorer, grid_table
from pipeline.stages.heads import Heads
from pipeline.stages.plan import covered_rows, plan_path, slice_of_each_batch, window_samples
from pipeline.stages.reading import PixelBlock, read_ahead, rows_per_read
from pipeline.stages.scoring import Predictions
from pipeline.stages.scoring_worker import ScoringWorker
from pipeline.stages.selection import Selected
from pipeline.stages.static import StaticScorer
from pipeline.stages.tables import matrix_from_lists, predictions_table, rejects_table
from pipeline.stages.work import Report, WorkItem
from pipeline.store.files import write_json
from pipeline.store.fingerprints import Fingerprint
from pipeline.store.ledger import Ledger
from pipeline.store.tables import ROWS, read_table, write_table

STAGE = "infer"
# Decoded pixels that a worker keeps of a window out of order, in reads: enough for 65,536 rows of 28x28 by default.
CACHED_READS = 4


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The batches of one window, the samples (row, sample_id, label) that they refer to, and the digest of their rows.

    ``samples`` is in order of address and may hold more than the batches do: images that gave no evidence. ``cache``
    is what the window's slices share of decoded chunks: only in batches out of order do several slices want the same.
    """

    batches: pa.Table
    samples: pa.Table
    rows: str
    cache: ChunkCache

    @classmethod
    def of(cls, batches: pa.Table, samples: pa.Table, rows: str, read_bytes: int) -> "WindowPlan":
        """Plan with an empty cache of ``CACHED_READS`` times ``read_bytes``, or of nothing for batches in order."""
        return cls(batches, samples, rows, ChunkCache(cached_bytes(batches, read_bytes)))


def cached_bytes(batches: pa.Table, read_bytes: int) -> int:
    """Decoded pixels that a worker keeps of a window with these ``batches``: none where they are in order."""
    flat = batches["rows"].combine_chunks().flatten().to_numpy()
    in_order = bool((flat[1:] > flat[:-1]).all())
    return 0 if in_order else CACHED_READS * read_bytes


@dataclass(frozen=True, slots=True)
class _Batch:
    """One batch: its λ (NaN where the weights are no λ), or weights of each source for encoder and head."""

    number: int
    lam: np.float32
    rows: NDArray[np.int64]
    encoder: tuple[float, ...] | None = None
    head: tuple[float, ...] | None = None


@dataclass(slots=True)
class _Scored:
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    lam: list[NDArray[np.float32]] = field(default_factory=list)
    batch: list[NDArray[np.int64]] = field(default_factory=list)
    unusable: dict[int, str] = field(default_factory=dict)

    def collect(self, group: list[_Batch], block: PixelBlock, logits: NDArray[np.float32]) -> None:
        """Add the logits [n, C] of some batches, and what is wrong with single rows of them."""
        reasons = dict(block.unreadable)
        for position in np.flatnonzero(~np.isfinite(logits).all(axis=1)):
            reasons.setdefault(int(position), "logits are not finite")
        self.unusable |= {int(block.rows[position]): reason for position, reason in reasons.items()}
        sizes = [len(batch.rows) for batch in group]
        self.rows.append(block.rows)
        self.logits.append(logits)
        self.lam.append(np.repeat(np.array([batch.lam for batch in group], dtype=np.float32), sizes))
        self.batch.append(np.repeat(np.array([batch.number for batch in group], dtype=np.int64), sizes))


@dataclass(frozen=True, slots=True)
class SliceScorer:
    """Scores slices of a plan over one archive."""

    archive: Archive
    scorer: Scorer
    heads: Heads
    weights_at: Callable[[float], tuple[float, ...]]
    class_names: list[str]
    tile: int
    read_bytes: int
    exact: bool

    def score(self, plan: WindowPlan, window: Window, part: int, ledger: Ledger) -> Predictions:
        """Merge once per batch, in order of λ, and score its images in tiles; or all by their own λ, without a merge.

        Batches are independent of one another: the order only lets equal neighbours share a merge.
        """
        batches = _batches_of(plan.batches, window, self.archive.part_rows, part)
        scored = _Scored()
        merged_before = self.scorer.segment.merges
        for group, block, following in self._with_pixels(batches, plan.cache, ledger):
            with ledger.phase("merge and forward"):
                logits = self._per_sample(group, block) if self.exact else self._per_batch(group, block, following)
            scored.collect(group, block, logits)
        count = sum(len(rows) for rows in scored.rows)
        merges = self.scorer.segment.merges - merged_before
        ledger.totals.update(
            batches=len(batches),
            merges=merges,
            merges_skipped=len(batches) - merges,
            images_read=count,
            samples=count - len(scored.unusable),
            rejected=len(scored.unusable),
        )
        return self._tables(scored, plan.samples)

    def _per_batch(self, group: list[_Batch], block: PixelBlock, following: _Batch | None) -> NDArray[np.float32]:
        """One merge for each batch, which is then scored in tiles of its own; ``following`` comes after the group."""
        logits, start = [], 0
        for batch, after in zip(group, [*group[1:], following], strict=True):
            pixels = block.pixels[start : start + len(batch.rows)]
            head = self.heads.at(float(batch.lam)) if batch.head is None else self.heads.blend(batch.head)
            ahead = None if after is None else self._encoder_weights(after)
            logits.append(
                self.scorer.merged_logits(pixels, self._encoder_weights(batch), head, tile=self.tile, following=ahead)
            )
            start += len(batch.rows)
        return np.concatenate(logits)

    def _encoder_weights(self, batch: _Batch) -> tuple[float, ...]:
        return batch.encoder or self.weights_at(float(batch.lam))

    def _per_sample(self, group: list[_Batch], block: PixelBlock) -> NDArray[np.float32]:
        """No merge: full tiles of images, each with its own λ and head."""
        lambdas = [float(batch.lam) for batch in group]
        heads = [self.heads.at(lam) for lam in lambdas]
        return self.scorer.per_sample_logits(block.pixels, lambdas, heads, ends=ROLES, tile=self.tile)

    def _with_pixels(
        self, batches: list[_Batch], cache: ChunkCache, ledger: Ledger
    ) -> Iterator[tuple[list[_Batch], PixelBlock, _Batch | None]]:
        """Neighbouring batches with their pixels, one read for as many as fit in its bytes; large ones are cut.

        With each comes the batch after them, None after the last.
        """
        limit = rows_per_read(self.archive, self.read_bytes, self.tile)
        groups = list(_groups(batches, limit))
        pieces = (np.concatenate([batch.rows for batch in group]) for group in groups)
        blocks = read_ahead(self.archive, pieces, cache)
        following = [*(group[0] for group in groups[1:]), None]
        yield from zip(groups, ledger.timed("read", blocks), following[: len(groups)], strict=True)

    def _tables(self, scored: _Scored, samples: pa.Table) -> Predictions:
        rows = np.concatenate([np.empty(0, dtype=np.int64), *scored.rows])
        order = np.argsort(rows)
        own = samples.take(pa.array(np.searchsorted(samples["row"].to_numpy(), rows[order])))
        rejected = np.isin(rows[order], np.fromiter(scored.unusable, dtype=np.int64))
        kept = order[~rejected]
        logits = np.concatenate([np.empty((0, len(self.class_names)), dtype=np.float32), *scored.logits])
        table = predictions_table(
            own.filter(pa.array(~rejected)),
            batch=np.concatenate([np.empty(0, dtype=np.int64), *scored.batch])[kept],
            lam=np.concatenate([np.empty(0, dtype=np.float32), *scored.lam])[kept],
            logits=logits[kept],
            class_names=self.class_names,
        )
        reasons = {int(p): scored.unusable[int(rows[order[p]])] for p in np.flatnonzero(rejected)}
        return Predictions(table, rejects_table(own, reasons))


def _batches_of(batches: pa.Table, window: Window, part_rows: int, part: int) -> list[_Batch]:
    slices = slice_of_each_batch(batches["size"].to_numpy(), window, part_rows)
    chosen = batches.filter(pa.array(slices == part)).sort_by([("lambda", "ascending"), ("batch", "ascending")])
    numbers, lambdas = chosen["batch"].to_numpy(), chosen["lambda"].fill_null(np.nan).to_numpy()
    encoder, head = (_weights(chosen, f"weights_{component}") for component in ("encoder", "head"))
    lists = chosen["rows"].combine_chunks()
    flat, offsets = lists.flatten().to_numpy(), np.append(0, np.cumsum(chosen["size"].to_numpy()))
    return [
        _Batch(int(number), lam, flat[offsets[i] : offsets[i + 1]], encoder[i], head[i])
        for i, (number, lam) in enumerate(zip(numbers, lambdas, strict=True))
    ]


def _weights(batches: pa.Table, column: str) -> list[tuple[float, ...] | None]:
    """Weights per source of each batch; None where a λ says it all."""
    if column not in batches.column_names:
        return [None] * len(batches)
    return [tuple(weights) for weights in matrix_from_lists(batches[column]).astype(np.float64).tolist()]


def _groups(batches: list[_Batch], limit: int) -> Iterator[list[_Batch]]:
    """Runs of batches of at most ``limit`` rows; a larger batch is cut into pieces of the same number and λ."""
    group: list[_Batch] = []
    size = 0
    for batch in batches:
        for start in range(0, len(batch.rows), limit):
            piece = replace(batch, rows=batch.rows[start : start + limit])
            if group and size + len(piece.rows) > limit:
                yield group
                group, size = [], 0
            group.append(piece)
            size += len(piece.rows)
    if group:
        yield group


class InferWorker(ScoringWorker):
    """Commits predictions: slices of cached batch plans, and archive parts of methods that form no batches."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self._cached: tuple[tuple[str, str, int], WindowPlan] | None = None
        self._static: tuple[str, StaticScorer] | None = None

    def run(self, item: WorkItem) -> Report:
        """Score one slice or part and commit it."""
        assert item.method is not None
        selected = self.context.selected[item.method]
        if selected.method.combination == "static":
            return self._run_static(item, selected)
        if selected.method.combination == "grid":
            return self._run_grid(item, selected)
        name = item.evaluation_set
        archive = self.context.archive(name)
        window = window_of(self.context, archive, item.part)
        plan = self._plan(name, selected, archive, window)
        ledger = Ledger()
        predictions = self.slice_scorer(name, archive, selected).score(plan, window, item.part, ledger)
        fingerprint = slice_fingerprints(self.context, name, archive, window, selected)[item.part]
        return self.commit(item, fingerprint, plan.rows, predictions, ledger)

    def slice_scorer(self, name: str, archive: Archive, selected: Selected) -> SliceScorer:
        """Scorer of an evaluation set's slices."""
        return SliceScorer(
            archive=archive,
            scorer=self.scorer,
            heads=self.heads(name),
            weights_at=self.context.weights_at,
            class_names=self.context.class_names(name, archive),
            tile=tile_of(self.context, selected),
            read_bytes=self.context.manifest.compute.read_bytes,
            exact=self.context.implementation(selected) == EXACT,
        )

    def commit(
        self, item: WorkItem, fingerprint: Fingerprint, rows: str, predictions: Predictions, ledger: Ledger
    ) -> Report:
        """Commit rejects, ledger and predictions of one slice or part, the predictions last."""
        assert item.method is not None
        name, part = item.evaluation_set, item.part
        directory, variant = self.context.directory, self.context.selected[item.method].variant
        stage = f"{STAGE}/{variant.folder}"
        self.book(ledger)
        with ledger.phase("write"):
            write_table(directory.rejects(stage, name, part), predictions.rejects, fingerprint)
        write_json(directory.ledger(stage, name, part), ledger.as_json())
        write_table(directory.predictions(variant, name, part), predictions.table, fingerprint, {ROWS: rows})
        return Report(item, samples=len(predictions.table), rejected=len(predictions.rejects), ledger=ledger)

    def _run_static(self, item: WorkItem, selected: Selected) -> Report:
        if self._static is None or self._static[0] != selected.key:
            self._static = (selected.key, StaticScorer(self.context, self.models, selected, self.scorer))
        ledger = Ledger()
        predictions = self._static[1].score(item.evaluation_set, item.part, ledger)
        archive = self.context.archive(item.evaluation_set)
        fingerprint = self.context.part_fingerprint(item.evaluation_set, archive, item.part, selected)
        rows = covered_rows(self.context.directory.evidence(item.evaluation_set, item.part))
        return self.commit(item, fingerprint, rows, predictions, ledger)

    def _run_grid(self, item: WorkItem, selected: Selected) -> Report:
        """Commit one part's logits at every λ; which λ is best is known when all parts are there."""
        name, part, directory = item.evaluation_set, item.part, self.context.directory
        archive, ledger = self.context.archive(name), Ledger()
        fingerprint = self.context.part_fingerprint(name, archive, part, selected)
        scored = GridScorer(self.context, self.scorer, self.heads(name)).score(name, archive, part, selected, ledger)
        self.book(ledger)
        stage = f"{STAGE}/{selected.key}"
        write_table(directory.rejects(stage, name, part), scored.rejects, fingerprint)
        write_json(directory.ledger(stage, name, part), ledger.as_json())
        table = grid_table(scored)
        rows = covered_rows(directory.evidence(name, part))
        write_table(directory.grid(selected.variant, name, part), table, fingerprint, {ROWS: rows})
        return Report(item, samples=len(table), rejected=len(scored.rejects), ledger=ledger, parts=0)

    def _plan(self, name: str, selected: Selected, archive: Archive, window: Window) -> WindowPlan:
        key = (name, selected.key, window.index)
        if self._cached is None or self._cached[0] != key:
            path = plan_path(self.context, name, window, selected)
            read_bytes = self.context.manifest.compute.read_bytes
            samples = window_samples(archive, window)
            plan = WindowPlan.of(read_table(path), samples, covered_rows(path), read_bytes)
            self._cached = (key, plan)
        return self._cached[1]


@dataclass(frozen=True, slots=True)
class MakeInferWorker:
    """Factory of stage two's workers."""

    context: RunContext

    def __call__(self) -> InferWorker:
        """Load the models in this process."""
        return InferWorker(self.context)


def tile_of(context: RunContext, selected: Selected) -> int:
    """Images in a forward call: min(tile, batch size); a merge for one image scores one."""
    tile = context.manifest.compute.tile
    if selected.method.grouping == "sample" and context.implementation(selected) != EXACT:
        return 1
    return min(tile, selected.whole("batch_size")) if "batch_size" in selected.settings else tile


def window_of(context: RunContext, archive: Archive, part: int) -> Window:
    """The window that an archive part lies in."""
    return next(window for window in context.windows(archive) if part in window.part_numbers)


def plan_digest(context: RunContext, name: str, archive: Archive, selected: Selected) -> str:
    """SHA-256 over all that stage two's answers on an evaluation set follow from, given the run's models and images.

    Batches with their rows and λ, the tile, and how a batch is scored: methods of equal digests give equal predictions.
    """
    digest = hashlib.sha256(f"{tile_of(context, selected)} {context.implementation(selected)}".encode())
    for window in context.windows(archive):
        plan = read_table(plan_path(context, name, window, selected), ["batch", "size", "lambda", "rows"])
        digest.update(f" {len(plan)} {window.first_part} ".encode())
        for column in (plan["batch"], plan["size"], plan["lambda"], plan["rows"].combine_chunks().flatten()):
            digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()


def slice_fingerprints(
    context: RunContext, name: str, archive: Archive, window: Window, selected: Selected
) -> dict[int, Fingerprint]:
    """What each slice of a window's predictions depends on, by part, whether λ was cached or computed on the fly."""
    batches = context.batches_fingerprint(name, archive, window, selected)
    return {part: context.predictions_fingerprint(batches, part, selected) for part in window.part_numbers}
