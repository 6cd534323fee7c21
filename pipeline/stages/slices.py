"""Scoring one slice of a batch plan: its batches in order of λ, each by its own merged model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.archives.archive import Archive, Window
from pipeline.archives.shards import ChunkCache
from pipeline.manifest.schema import ROLES
from pipeline.models.scorer import Scorer, on_host
from pipeline.stages.heads import Heads
from pipeline.stages.plan import batches_of_slice
from pipeline.stages.reading import PixelBlock, read_ahead, rows_per_read, shared_reads
from pipeline.stages.scoring import Predictions
from pipeline.stages.tables import matrix_from_lists, predictions_table, rejects_table
from pipeline.store.ledger import Ledger

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
        batches = _batches_of(batches_of_slice(plan.batches, window, self.archive.part_rows, part))
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
                self.scorer.merged(pixels, self._encoder_weights(batch), head, tile=self.tile, following=ahead)
            )
            start += len(batch.rows)
        return on_host(torch.cat(logits))

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
        groups = _groups(batches, limit)
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


def _batches_of(chosen: pa.Table) -> list[_Batch]:
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


def _groups(batches: list[_Batch], limit: int) -> list[list[_Batch]]:
    """Batches, or pieces of large ones with the same number and λ, that share a read of at most ``limit`` rows."""
    reads = shared_reads([len(batch.rows) for batch in batches], limit)
    return [
        [replace(batches[piece.batch], rows=batches[piece.batch].rows[piece.start : piece.stop]) for piece in read]
        for read in reads
    ]
