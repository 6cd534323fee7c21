"""What the scorer's options are worth on this machine: time and error of one plain model's forward, side by side."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.benchmarks.bars import Bar, chart
from pipeline.benchmarks.random_pair import random_pair, short_name
from pipeline.benchmarks.turns import median_ratio, take_turns
from pipeline.errors import NumericKindError
from pipeline.models.class_embeddings import ClassHead
from pipeline.models.compiled import name_compiler
from pipeline.models.numeric_kind import choose_device
from pipeline.models.scorer import Scorer
from pipeline.models.sources import SourceModels

CLASSES = 8
LOGIT_SCALE = 100.0
MODEL = "plain"


@dataclass(frozen=True, slots=True)
class Options:
    """One way to score; ``autocast`` keeps weights in float32 and lets torch choose bfloat16 for single operations."""

    precision: str = "fp32"
    memory_format: str = "contiguous"
    compiled: bool = False
    autocast: bool = False

    @property
    def name(self) -> str:
        """The options that are not the reference's, as a manifest calls them."""
        layout = [] if self.memory_format == "contiguous" else [self.memory_format]
        compiled = ["compile"] if self.compiled else []
        autocast = ["autocast bf16"] if self.autocast else []
        return " ".join([self.precision, *layout, *compiled, *autocast])


REFERENCE = Options()
WAYS: tuple[Options, ...] = (
    REFERENCE,
    Options(memory_format="channels_last"),
    Options(compiled=True),
    Options(memory_format="channels_last", compiled=True),
    Options(precision="bf16"),
    Options(precision="bf16", memory_format="channels_last"),
    Options(precision="bf16", compiled=True),
    Options(autocast=True),
)


def scoring_options(
    architecture: str, *, tile: int, samples: int, pairs: int, threads: int, device: str = "cpu"
) -> dict[str, Any]:
    """Time and error of every way to score ``samples`` random images by one model with random weights.

    Ways take turns, ``pairs`` of them beside one that is dropped and in which towers are compiled. ``ratio`` is each
    way's time over that of float32 without options; ``error`` is the largest difference of any logit from the same,
    over the largest logit. Where there is no compiler, ways that need it are left out, and ``left_out`` says why.
    """
    torch.set_num_threads(threads)
    place = choose_device(device)
    pair = random_pair(architecture)
    model = pair.with_single(MODEL, pair.states["generalist"])
    geometry = model.preprocessing.geometry
    pixels = np.random.default_rng(0).integers(0, 256, (samples, geometry.height, geometry.width, 3), dtype=np.uint8)
    ways, left_out = WAYS, None
    try:
        name_compiler(place)
    except NumericKindError as error:
        ways, left_out = tuple(way for way in WAYS if not way.compiled), str(error)
    head = _random_head(model, place)
    scoring = {way.name: _way_to_score(way, model, place, pixels, head, tile) for way in ways}
    seconds = take_turns(scoring, pairs)
    reference = scoring[REFERENCE.name](0)
    result: dict[str, Any] = {
        "architecture": architecture,
        "tile": tile,
        "samples": samples,
        "pairs": pairs,
        "threads": threads,
        "left_out": left_out,
        "rows": [
            {
                "name": name,
                **median_ratio(seconds[name], seconds[REFERENCE.name]).as_json(),
                "seconds": statistics.median(seconds[name]),
                "error": float(np.abs(score(0) - reference).max() / np.abs(reference).max()),
            }
            for name, score in scoring.items()
        ],
    }
    bars = [Bar.of_ratio(row["name"], row) for row in result["rows"]]
    result |= chart(
        f"One {short_name(architecture)} with the scorer's options", "time over that of fp32 without options", bars
    )
    result["text"] = _text(result)
    return result


def _way_to_score(
    way: Options, model: SourceModels, device: torch.device, pixels: NDArray[np.uint8], head: ClassHead, tile: int
) -> Callable[[int], NDArray[np.float32]]:
    scorer = Scorer(
        model, device=device, precision=way.precision, memory_format=way.memory_format, compiled=way.compiled
    )
    if way.autocast:
        tower = scorer.segment.ends[0]
        # The tower only: heads are float32 in every way.
        vars(tower)["forward"] = torch.autocast(device.type, torch.bfloat16)(tower.forward)
    return lambda _turn: scorer.source_logits(pixels, [head], tile=tile)[0]


def _random_head(model: SourceModels, device: torch.device) -> ClassHead:
    """A head of the width that the image tower has."""
    geometry = model.preprocessing.geometry
    tower = Scorer(model, device=device, precision="fp32").segment.ends[0]
    with torch.inference_mode():
        width = tower(torch.zeros(1, 3, geometry.height, geometry.width, device=device)).shape[-1]
    embeddings_CD = torch.nn.functional.normalize(torch.randn(CLASSES, width), dim=-1)
    return ClassHead(embeddings_CD, LOGIT_SCALE, torch.zeros(CLASSES))


def _text(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['architecture']}, one plain model, {result['samples']} images in tiles of {result['tile']}, "
        f"{result['threads']} threads, {result['pairs']} turns",
        f"  {'way':<30} {'ratio':>7}   {'interval':<16} {'images/s':>9}   max|Δlogit|/max|logit|",
    ]
    for row in result["rows"]:
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        speed = result["samples"] / row["seconds"]
        lines.append(f"  {row['name']:<30} {row['ratio']:7.3f}   {interval:<16} {speed:9,.1f}   {row['error']:.1e}")
    if result["left_out"]:
        lines.append(f"  without compiled towers: {result['left_out']}")
    return "\n".join(lines)
