"""All usable images of one archive part through one or several models, in tiles that depend on the archive alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archives.archive import Archive
from pipeline.manifest.schema import Compute
from pipeline.stages.reading import read_ahead, rows_per_read
from pipeline.stages.tables import SAMPLE_COLUMNS, rejects_table
from pipeline.store.ledger import Ledger

Score = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class PartLogits:
    """Samples (``SAMPLE_COLUMNS``) of a part that could be scored, logits [M, N, C] of M models, and the rejects."""

    samples: pa.Table
    logits: NDArray[np.float32]
    rejects: pa.Table


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of a part or slice, sorted by row, and the samples that got none."""

    table: pa.Table
    rejects: pa.Table


def score_part(
    archive: Archive,
    part: int,
    score: Score,
    *,
    models: int,
    tile: int,
    compute: Compute,
    ledger: Ledger,
    rows: NDArray[np.int64] | None = None,
) -> PartLogits:
    """Score the accepted images of one part with ``score``: pixels [n, H, W, 3] to M logits [n, C].

    Tiles are cut from the part's accepted rows, or those of them in ``rows``, in order of address. An image that
    cannot be read, or that gives a logit that is not finite, is set apart with its reason.
    """
    samples = archive.samples(part).select(SAMPLE_COLUMNS)
    if rows is not None:
        samples = samples.filter(pa.array(np.isin(samples["row"].to_numpy(), rows)))
    rows = samples["row"].to_numpy()
    scored = [np.empty((models, 0, len(archive.class_names)), dtype=np.float32)]
    unusable: dict[int, str] = {}
    step = rows_per_read(archive, compute.read_bytes, tile)
    blocks = read_ahead(archive, (rows[start : start + step] for start in range(0, len(rows), step)))
    for start, block in zip(range(0, len(rows), step), ledger.timed("read", blocks), strict=True):
        with ledger.phase("forward"):
            scored.append(np.stack(score(block.pixels)))
        unusable |= {start + position: reason for position, reason in block.unreadable.items()}
    logits = np.concatenate(scored, axis=1)
    for position in np.flatnonzero(~np.isfinite(logits).all(axis=(0, 2))):
        unusable.setdefault(int(position), "logits are not finite")
    ledger.totals.update(images_read=len(rows), samples=len(rows) - len(unusable), rejected=len(unusable))
    kept = np.setdiff1d(np.arange(len(rows)), np.fromiter(unusable, dtype=np.int64))
    return PartLogits(samples.take(pa.array(kept)), logits[:, kept], rejects_table(samples, unusable))
