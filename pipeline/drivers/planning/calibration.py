"""What single operations cost here and now, measured with a run's real models on the first of its real images."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, cycle
from statistics import median

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.archives.archive import Archive
from pipeline.coefficients.evidence import Evidence
from pipeline.costs import CostModel, fit_costs
from pipeline.drivers.planning.decoding import WindowReader
from pipeline.manifest.schema import ROLES
from pipeline.models.class_embeddings import ClassHead
from pipeline.models.scorer import Scorer
from pipeline.stages.context import EXACT, RunContext
from pipeline.stages.heads import Heads
from pipeline.stages.infer import tile_of
from pipeline.stages.peak_memory import PeakMemory
from pipeline.stages.reading import read_block, rows_per_read
from pipeline.stages.selection import Selected
from pipeline.stages.tables import SAMPLE_COLUMNS, evidence_table

# Repetitions that are enough for a median, images of a set that are enough to know how its λ is distributed.
ENOUGH, ENOUGH_IMAGES = 40, 2048
# Every image of a block, every eighth, and (0) the first half of it: what reading costs is fitted to all three.
STRIDES = (1, 8, 0)
PHASES = 5


@dataclass(frozen=True, slots=True)
class DevicePrices:
    """Seconds per operation on the run's device, in its numeric kind.

    ``read``: of blocks of images, their rows, and the images decoded to have them. ``sources``: a tile through every
    source. ``merge``: by how many ends have weight. ``merged``: a call of a merged model, by its tile. ``per_sample``:
    a tile in which every image has its own λ, by its size. ``activations`` are the bytes that forwards take beyond
    weights and inputs.
    """

    read: CostModel
    sources: float
    merge: Mapping[int, float]
    merged: Mapping[int, float]
    per_sample: Mapping[int, float]
    activations: int

    def merge_of(self, ends: int) -> float:
        """Seconds of a merge in which ``ends`` have weight, or of the next larger one that was measured."""
        return self.merge[min((number for number in self.merge if number >= ends), default=max(self.merge))]


@dataclass(slots=True)
class Calibration:
    """Measures on the first images of each set; ``archives`` hold at least these.

    Heads of the sets ``exact_heads`` are a text forward each: priced apart, they are in no price of images.
    """

    context: RunContext
    scorer: Scorer
    device: torch.device
    archives: Mapping[str, Archive]
    heads: Mapping[str, Heads]
    exact_heads: frozenset[str]
    seconds: float
    report: Callable[[str], None]
    evidence: dict[str, pa.Table] = field(default_factory=dict)

    def measure(self, selected: Sequence[Selected]) -> DevicePrices:
        """Prices of all that ``selected`` need, and of stage one; fills ``evidence`` by evaluation set."""
        scored = [item for item in selected if item.method.combination in {"batch", "static", "grid"}]
        exact = {item.key for item in scored if self.context.implementation(item) == EXACT}
        exact_tiles = sorted({tile_of(self.context, item) for item in scored if item.key in exact})
        tiles = sorted({tile_of(self.context, item) for item in scored if item.key not in exact})
        ends = sorted(
            {
                len(self.context.sources) if item.weighs_sources else len(ROLES)
                for item in scored
                if item.key not in exact and item.method.combination != "static"
            }
        )
        with PeakMemory(self.device) as peak:
            read, sources = self._read(), self._sources()
            merge = {number: self._merge(number, self._share(len(ends))) for number in ends}
            merged = {tile: self._merged(tile, self._share(len(tiles))) for tile in tiles}
            per_sample = {tile: self._per_sample(tile, self._share(len(exact_tiles))) for tile in exact_tiles}
        return DevicePrices(read, sources, merge, merged, per_sample, peak.bytes)

    def evidence_of(self, names: Iterable[str]) -> dict[str, pa.Table]:
        """Evidence of each set's first images; where there was no time for any, that of another one's."""
        everyone = next(iter(self.evidence.values()))
        return {name: self.evidence.get(name, everyone) for name in names}

    def _share(self, things: int) -> float:
        return self.seconds / PHASES / max(things, 1)

    def _read(self) -> CostModel:
        """Prices of reading: in order as stage one does, and scattered as stage two does with rows sorted by λ."""
        self.report("reading")
        measured: list[tuple[dict[str, float], float]] = []
        spent, budget = 0.0, self._share(1)
        for (name, rows), stride in zip(cycle(self._blocks()), cycle(STRIDES), strict=False):
            if len(measured) >= ENOUGH or (len(measured) >= len(STRIDES) and spent >= budget):
                break
            archive = Archive.open(self.archives[name].path)
            chosen = rows[::stride] if stride else rows[: len(rows) // 2 + 1]
            start = time.perf_counter()
            read_block(archive, chosen)
            seconds = time.perf_counter() - start
            spent += seconds
            measured.append((read_counts(WindowReader(archive).decode(chosen), len(chosen), 1), seconds))
        return fit_costs(measured)

    def _blocks(self) -> list[tuple[str, NDArray[np.int64]]]:
        """Sets and rows that are read at once, the sets in turn."""
        compute, blocks = self.context.manifest.compute, []
        for name, archive in self.archives.items():
            rows = first_rows(archive)
            limit = rows_per_read(archive, compute.read_bytes, compute.tile)
            blocks += [(start, name, rows[start : start + limit]) for start in range(0, len(rows), limit)]
        return [(name, rows) for _, name, rows in sorted(blocks, key=lambda block: block[0])]

    def _sources(self) -> float:
        """Seconds per tile of all sources; the sets take turns, so that each has evidence where time allows."""
        tile, budget = self.context.manifest.compute.tile, self._share(1)
        pending = {name: first_rows(archive)[:ENOUGH_IMAGES] for name, archive in self.archives.items()}
        logits: dict[str, list[list[NDArray[np.float32]]]] = {name: [] for name in pending}
        used: dict[str, int] = dict.fromkeys(pending, 0)
        spent: list[float] = []
        self.report("every source")
        for name in cycle(list(pending)):
            if not any(len(rows) > used[other] for other, rows in pending.items()) or (spent and sum(spent) >= budget):
                break
            rows = pending[name][used[name] : used[name] + tile]
            if not len(rows):
                continue
            pixels = self.archives[name].read(rows)
            score = partial(self.scorer.source_logits, pixels, self.heads[name].sources, tile=tile)
            if not spent:
                self._compile(score)
            seconds, scored = self._clock(score)
            spent.append(seconds)
            logits[name].append(scored)
            used[name] += len(rows)
        for name, tiles in logits.items():
            if tiles:
                self.evidence[name] = self._evidence(name, used[name], tiles)
        return median(spent[1:] or spent)

    def _evidence(self, name: str, images: int, tiles: list[list[NDArray[np.float32]]]) -> pa.Table:
        samples = self.archives[name].samples(first_part(self.archives[name])).select(SAMPLE_COLUMNS)[:images]
        joined = [np.concatenate(parts) for parts in zip(*tiles, strict=True)]
        usable = np.isfinite(joined).all(axis=(0, 2))
        kept = [logits[usable] for logits in joined]
        evidence = Evidence.from_logits(dict(zip(self.context.sources, kept, strict=True)))
        return evidence_table(samples.filter(pa.array(usable)), evidence)

    def _merge(self, ends: int, budget: float) -> float:
        self.report("merging")
        weights = (self._weights(lam, ends) for lam in _moving())
        return self._repeat(lambda: self.scorer.segment.at(next(weights)), budget)

    def _merged(self, tile: int, budget: float) -> float:
        """Seconds per call; one that has just been merged, with its head, less the merge itself."""
        self.report(f"merged model, tile {tile}")
        name, pixels = self._tile(tile)
        # One sequence for both: what the one has merged last would cost the other nothing.
        lambdas = _moving()
        head_at = self._head_at(name)

        def batch() -> None:
            lam = next(lambdas)
            self.scorer.merged_logits(pixels, self._weights(lam, len(ROLES)), head_at(lam), tile=tile)

        merge = self._repeat(lambda: self.scorer.segment.at(self._weights(next(lambdas), len(ROLES))), budget / 4)
        return max(self._repeat(batch, budget) - merge, 0.0)

    def _head_at(self, name: str) -> Callable[[float], ClassHead]:
        """A set's heads by λ, or where each is a text forward a single one."""
        heads = self.heads[name]
        if not self.context.manifest.is_pair:
            return lambda lam: heads.blend(self._weights(lam, len(ROLES)))
        if name in self.exact_heads:
            head = heads.at(0.5)
            return lambda _: head
        return heads.at

    def _per_sample(self, tile: int, budget: float) -> float:
        self.report(f"exact form for each image, tile {tile}")
        name, pixels = self._tile(tile)
        lambdas = [(index + 1) / (tile + 1) for index in range(tile)]
        head_at = self._head_at(name)

        def score() -> None:
            heads = [head_at(lam) for lam in lambdas]
            self.scorer.per_sample_logits(pixels, lambdas, heads, ends=ROLES, tile=tile)

        return self._repeat(score, budget)

    def _tile(self, tile: int) -> tuple[str, NDArray[np.uint8]]:
        """A set's name, and one tile of its images, which come again where it has too few."""
        name, archive = next(iter(self.archives.items()))
        rows = first_rows(archive)
        return name, archive.read(np.resize(rows, tile))

    def _weights(self, lam: float, ends: int) -> tuple[float, ...]:
        if ends == len(ROLES) and self.context.manifest.is_pair:
            return self.context.weights_at(lam)
        others = len(self.context.sources) - 1
        return (1.0 - lam, *([lam / others] * others))

    def _repeat(self, work: Callable[[], object], budget: float) -> float:
        return median(self._times(work, budget))

    def _times(self, work: Callable[[], object], budget: float) -> list[float]:
        """Seconds of each repetition; the first one touches everything for the first time, and counts if alone."""
        self._compile(work)
        times: list[float] = []
        while not times or (sum(times) + times[-1] <= budget and len(times) < ENOUGH):
            times.append(self._clock(work)[0])
        return times[1:] or times

    def _compile(self, work: Callable[[], object]) -> None:
        """Where towers are compiled, have it done, once for each shape: it is no price of a tile."""
        if self.context.manifest.compute.compile:
            work()

    def _clock[Result](self, work: Callable[[], Result]) -> tuple[float, Result]:
        self._synchronize()
        start = time.perf_counter()
        result = work()
        self._synchronize()
        return time.perf_counter() - start, result

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def read_counts(decoded: float, rows: float, blocks: float) -> dict[str, float]:
    """Operations of reading, for :mod:`pipeline.costs`."""
    return {"decode": decoded, "row": rows, "block": blocks}


def first_part(archive: Archive) -> int:
    """First part that is written and holds images."""
    return next(part for part in range(archive.parts) if archive.is_written(part) and archive.accepted(part))


def first_rows(archive: Archive) -> NDArray[np.int64]:
    """Addresses of that part's images."""
    rows: NDArray[np.int64] = archive.samples(first_part(archive))["row"].to_numpy()
    return rows


def _moving() -> Iterator[float]:
    """λ inside (0, 1), another one each time."""
    return (((step * 7) % 97 + 1) / 99 for step in count())
