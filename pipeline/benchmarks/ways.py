"""What one turn of each method does to the same images, by the code that both stages run, and what it counts.

Class embeddings and what is cached (λ) are there before the clock starts, as they are when an archive is scored; online
rows cache nothing. Pixels are in memory: reading is another benchmark's matter.

Shapes: N images, H×W pixels, C classes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.archives.cells import CELL_CLASSES
from pipeline.archives.synthetic import SyntheticSource
from pipeline.benchmarks.random_pair import random_pair
from pipeline.coefficients.evidence import EXPERT, GENERALIST, Evidence
from pipeline.coefficients.grouping import BatchPlan, arrival, by_lambda, within_tolerance
from pipeline.coefficients.rules import RULES, T3Settings, t3
from pipeline.geometry import image_transform, prepare_image
from pipeline.models.architectures import Architecture
from pipeline.models.class_embeddings import ClassHead, HeadSource, LinearHeads, TextTower, fill_templates
from pipeline.models.head_curve import HeadCurve, fit_head_curve
from pipeline.models.per_sample import UnsupportedLayerError
from pipeline.models.scorer import Scorer
from pipeline.models.sources import SourceModels

TEMPLATES = ("a photo of {}.",)
CURVE_TOLERANCE = 1e-4
ENDS = (GENERALIST, EXPERT)
# Eq. 10 at γ = 1 and bounds 0 and 1 gives λ in this range: the cached λ of the benchmark are drawn from it, evenly.
LAMBDAS = (0.5, 2 / 3)
PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Way:
    """One row of the table: a turn of it gives logits [N, C] and adds to the counts of operations.

    ``weights`` says how many sets of an image tower's weights must lie in memory while it runs.
    """

    name: str
    run: Callable[[], NDArray[np.float32]]
    weights: int
    text_forwards: int


@dataclass(slots=True)
class Workload:
    """Images, their cached λ, heads and the scorer: what all ways share.

    ``batch_size`` images share a merged model and go through a forward together. ``exact`` is False where the image
    tower's per-sample form is not known: rows with a λ for every image then merge for each.
    """

    models: SourceModels
    scorer: Scorer
    pixels: NDArray[np.uint8]
    lambdas: NDArray[np.float32]
    heads: tuple[ClassHead, ClassHead]
    curve: HeadCurve
    batch_size: int
    curve_forwards: int
    device: torch.device
    exact: bool = True
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def make(
        cls, architecture: str, *, samples: int, batch_size: int, classes: int, device: torch.device, precision: str
    ) -> "Workload":
        """Random pair of ``architecture``, procedural cells and evenly drawn λ; the same for the same arguments."""
        models = random_pair(architecture, classes=classes)
        source = head_source(models, classes, device)
        curve = fit_head_curve(source, tolerance=CURVE_TOLERANCE, weights_at=lambda lam: (1.0 - lam, lam))
        assert curve is not None, "random weights make a smooth curve"
        scorer = Scorer(models, device=device, precision=precision)
        generator = np.random.default_rng(0)
        work = cls(
            models=models,
            scorer=scorer,
            pixels=cells(models, samples),
            lambdas=generator.uniform(*LAMBDAS, samples).astype(np.float32),
            heads=(curve.at(0.0), curve.at(1.0)),
            curve=curve,
            batch_size=batch_size,
            curve_forwards=source.forward_calls,
            device=device,
        )
        try:
            scorer.per_sample_tower(ENDS)
        except UnsupportedLayerError:
            work.exact = False
        return work

    @property
    def weight_bytes(self) -> int:
        """Bytes of one set of the image tower's weights."""
        return self.scorer.segment.bytes_per_merge(ends=0)

    def ways(self, tolerances: Sequence[float] = ()) -> dict[str, Way]:
        """All rows by name, ``plain`` first."""
        size, lambdas, rows = self.batch_size, self.lambdas, np.arange(len(self.pixels))
        cached = arrival(rows, lambdas, batch_size=size, first_address=0)
        half = np.full_like(lambdas, 0.5)
        soup = arrival(rows, half, batch_size=size, first_address=0)
        dawin = RULES["dawin"](self._evidence_quietly()).lam
        # Both ends, and what they are merged into: twice where the next batch's weights are merged ahead.
        merged = self.scorer.segment.bytes_held() // self.weight_bytes
        own, curve = 2 if self.exact else merged, self.curve_forwards
        found = [
            Way(PLAIN, lambda: self._at(soup, np.zeros_like(soup.lam)), 1, 1),
            Way("ensemble", self._ensemble, 2, 2),
            Way("soup", lambda: self._at(soup, soup.lam), 1, 1),
            Way("dawin", lambda: self._own(dawin), own, curve),
            Way("t3-batch", lambda: self._at(cached, cached.lam), merged, curve),
            Way("t3-batch-online", self._batch_online, merged, curve),
            Way("t3-loop", lambda: self._loop(lambdas), merged, curve),
            Way("t3-loop-online", self._loop_online, merged, curve),
            Way("t3", lambda: self._own(lambdas), own, curve),
            Way("t3-online", self._own_online, own, curve),
        ]
        for tolerance in tolerances:
            plan = within_tolerance(rows, lambdas, tolerance=tolerance)
            found.append(Way(f"t3-lambda@{tolerance:g}", partial(self._at, plan, plan.lam), merged, curve))
        return {way.name: way for way in found}

    def _at(self, plan: BatchPlan, lambdas: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits by one merge for each batch of a plan, with ``lambdas`` [B] in place of its own."""
        logits = np.empty((len(self.pixels), len(self.curve.biases[0])), dtype=np.float32)
        following = [(1.0 - lam, lam) for lam in lambdas.tolist()[1:]]
        for batch, (lam, after) in enumerate(zip(lambdas.tolist(), [*following, None], strict=True)):
            rows = plan.rows[plan.offsets[batch] : plan.offsets[batch + 1]]
            pixels, own = self.pixels[rows], (1.0 - lam, lam)
            head = self.curve.at(lam)
            logits[rows] = self.scorer.merged_logits(pixels, own, head, tile=self.batch_size, following=after)
            forwards = "forward" if self.batch_size > 1 else "forward_alone"
            self.counts.update({"batch": 1, forwards: self._in_tiles(len(rows)), "bytes": pixels.nbytes})
        return logits

    def _in_tiles(self, images: int) -> int:
        """Images that are paid for: the last tile is filled up, as in both stages (DESIGN rule 1)."""
        return -(-images // self.batch_size) * self.batch_size

    def _sources(self, pixels: NDArray[np.uint8], *, tile: int) -> list[NDArray[np.float32]]:
        counted = {"forward_alone": 2 * len(pixels)} if tile == 1 else {"forward": 2 * self._in_tiles(len(pixels))}
        self.counts.update({**counted, "bytes": pixels.nbytes})
        return self.scorer.source_logits(pixels, self.heads, tile=tile)

    def _evidence(self, pixels: NDArray[np.uint8], *, tile: int) -> Evidence:
        return Evidence.from_logits(dict(zip(ENDS, self._sources(pixels, tile=tile), strict=True)))

    def _evidence_quietly(self) -> Evidence:
        evidence = self._evidence(self.pixels, tile=self.batch_size)
        self.counts.clear()
        return evidence

    def _ensemble(self) -> NDArray[np.float32]:
        mean: NDArray[np.float32] = np.mean(self._sources(self.pixels, tile=self.batch_size), axis=0)
        return mean

    def _batch_online(self) -> NDArray[np.float32]:
        lambdas = t3(self._evidence(self.pixels, tile=self.batch_size), T3Settings()).lam
        plan = arrival(np.arange(len(self.pixels)), lambdas, batch_size=self.batch_size, first_address=0)
        return self._at(plan, plan.lam)

    def _own(self, lambdas: NDArray[np.float32]) -> NDArray[np.float32]:
        """Each image by its own λ: in full tiles where that can be, else by a merge for each."""
        if not self.exact:
            return self._loop(lambdas)
        own = lambdas.tolist()
        self.counts.update(per_sample=self._in_tiles(len(own)), bytes=self.pixels.nbytes)
        heads = [self.curve.at(lam) for lam in own]
        return self.scorer.per_sample_logits(self.pixels, own, heads, ends=ENDS, tile=self.batch_size)

    def _own_online(self) -> NDArray[np.float32]:
        return self._own(t3(self._evidence(self.pixels, tile=self.batch_size), T3Settings()).lam)

    def _loop(self, lambdas: NDArray[np.float32]) -> NDArray[np.float32]:
        """A merge and a forward of one image for each image, in order of λ."""
        plan = by_lambda(np.arange(len(self.pixels)), lambdas, batch_size=1)
        following = [*plan.lam[1:].tolist(), None]
        steps = zip(plan.rows, plan.lam, following, strict=True)
        logits = np.concatenate([self._alone(row, lam, after) for row, lam, after in steps])
        return logits[np.argsort(plan.rows)]

    def _loop_online(self) -> NDArray[np.float32]:
        """The paper's T³ to the letter: for each image by itself two forwards, a coefficient, a merge and a third."""
        logits = []
        for row in range(len(self.pixels)):
            evidence = self._evidence(self.pixels[row : row + 1], tile=1)
            logits.append(self._alone(row, t3(evidence, T3Settings()).lam[0]))
        return np.concatenate(logits)

    def _alone(self, row: int, lam: np.float32, after: float | None = None) -> NDArray[np.float32]:
        pixels, own = self.pixels[row : row + 1], float(lam)
        following = None if after is None else (1.0 - after, after)
        self.counts.update(batch=1, forward_alone=1, bytes=pixels.nbytes)
        return self.scorer.merged_logits(pixels, (1.0 - own, own), self.curve.at(own), tile=1, following=following)


def head_source(models: SourceModels, classes: int, device: torch.device) -> HeadSource:
    """Heads of ``classes`` named classes at any weights of the pair, by its text tower or its linear heads."""
    if not isinstance(models.architecture, Architecture):
        return LinearHeads(models)
    tokens = models.architecture.tokenize(fill_templates(class_names(classes), TEMPLATES))
    return TextTower(models, tokens, classes, merged=True, device=device)


def class_names(count: int) -> list[str]:
    """The cell types first, then numbered ones."""
    return [*CELL_CLASSES, *(f"cell type number {number}" for number in range(len(CELL_CLASSES), count))][:count]


def cells(models: SourceModels, count: int) -> NDArray[np.uint8]:
    """Procedural cells as an archive holds them: ``count`` images [N, H, W, 3] in the models' geometry."""
    geometry = models.preprocessing.geometry
    transform = image_transform(geometry)
    source = SyntheticSource(count, seed=0, classes=len(CELL_CLASSES), size=max(28, min(geometry.height, 224)))
    return np.stack([prepare_image(item.image, transform) for item in source.read(0, count) if item.image is not None])
