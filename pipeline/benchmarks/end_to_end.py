"""Both stages, from images in an archive to committed tables, against bare loops over the same images in memory."""

import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.benchmarks.bars import Bar, chart
from pipeline.benchmarks.requirements import INFER_TO_BARE_LOOP
from pipeline.benchmarks.synthetic_run import SET_NAME, write_archive, write_manifest, write_pair
from pipeline.benchmarks.turns import Ratio, collect_turns, median_ratio
from pipeline.drivers.infer import infer
from pipeline.drivers.opening import open_run
from pipeline.drivers.precompute import precompute
from pipeline.engines.engine import Engine, EngineName, choose_engine
from pipeline.engines.local import LocalEngine
from pipeline.errors import PipelineError
from pipeline.manifest import Manifest, load_manifest
from pipeline.stages.infer import InferWorker
from pipeline.stages.plan import plan_path
from pipeline.stages.selection import select_methods
from pipeline.store.tables import read_table

# The bare loop of each way of the pipeline.
REFERENCES = {
    "infer, ray": "merged loop",
    "infer, local": "merged loop",
    "plain loop": "merged loop",
    "precompute, ray": "both loop",
    "precompute, local": "both loop",
}
BOUNDS = {"infer, ray": INFER_TO_BARE_LOOP}
# The first part is left out, and three more are the least that says anything.
LEAST_PARTS = 4


class BareLoops:
    """What a script would do with ready uint8 tensors: normalise, merge where it merges, tower, head, argmax.

    Batches are those of the committed plan, their tensors made before any clock starts.
    """

    def __init__(self, manifest: Manifest) -> None:
        context, _ = open_run(manifest, LocalEngine(manifest), select_methods(manifest))
        worker = InferWorker(context)
        selected = select_methods(manifest)[0]
        archive = context.archive(SET_NAME)
        plan = [read_table(plan_path(context, SET_NAME, window, selected)) for window in context.windows(archive)]
        rows = [batch for table in plan for batch in table["rows"].to_numpy()]
        self.batches = [torch.from_numpy(archive.read(batch)) for batch in rows]
        self.lambdas = [lam for table in plan for lam in table["lambda"].to_pylist()]
        self.count = sum(len(batch) for batch in rows)
        self._segment, self._heads, self._weights_at = worker.scorer.segment, worker.heads(SET_NAME), context.weights_at
        self._mean = torch.tensor(worker.models.preprocessing.mean).view(1, 3, 1, 1)
        self._std = torch.tensor(worker.models.preprocessing.std).view(1, 3, 1, 1)

    @torch.inference_mode()
    def merged(self) -> list[Tensor]:
        """Each batch by its own merged model and head."""
        answers = []
        for images, lam in zip(self.batches, self.lambdas, strict=True):
            tower = self._segment.at(self._weights_at(lam))
            answers.append(self._heads.at(lam).logits(tower(self._normalised(images))).argmax(dim=1))
        return answers

    @torch.inference_mode()
    def plain(self) -> list[Tensor]:
        """All batches by one model, which is what nobody can beat."""
        tower, head = self._segment.ends[0], self._heads.sources[0]
        return [head.logits(tower(self._normalised(images))).argmax(dim=1) for images in self.batches]

    @torch.inference_mode()
    def both(self) -> list[list[Tensor]]:
        """Logits of both models: stage one's forwards."""
        ends = [*zip(self._segment.ends, self._heads.sources, strict=True)]
        answers = []
        for images in self.batches:
            inputs = self._normalised(images)
            answers.append([head.logits(tower(inputs)) for tower, head in ends])
        return answers

    def _normalised(self, images: Tensor) -> Tensor:
        unit = images.permute(0, 3, 1, 2).contiguous().float().div_(255)
        return unit.sub_(self._mean).div_(self._std)


def end_to_end(images: int, pairs: int, threads: int, folder: Path, *, part_rows: int = 8192) -> dict[str, Any]:
    """Images per second of both stages with one worker and of bare loops with the same threads, ``pairs`` turns.

    The archive is ingested, and λ derived, before any clock starts; what an earlier call left in ``folder`` is used
    again. Start-up is left out: a stage counts from the moment its first part was written, before which workers start
    and load models, to that of its last part, over the images of all but the first; reading, decoding, tables, their
    way to the disk and Ray's own work are all in it. The loops hold all images in memory and keep nothing.
    """
    write_pair(folder)
    manifest = load_manifest(write_manifest(folder / str(images), folder, images, threads=threads, part_rows=part_rows))
    if images < LEAST_PARTS * part_rows:
        msg = f"--images must be at least {LEAST_PARTS * part_rows:,}, {LEAST_PARTS} parts, got {images:,}"
        raise PipelineError(msg)
    write_archive(manifest, images)
    precompute(manifest, LocalEngine(manifest))
    threads_before = torch.get_num_threads()
    loops = BareLoops(manifest)
    try:
        ways = _ways(manifest, loops)
        seconds = collect_turns(ways, pairs)
    finally:
        torch.set_num_threads(threads_before)
    ratios = {name: median_ratio(seconds[other], seconds[name]) for name, other in REFERENCES.items()}
    result: dict[str, Any] = {
        "images": images,
        "pairs": pairs,
        "threads": threads,
        "images_per_second": {name: 1 / statistics.median(values) for name, values in seconds.items()},
        "ratios": {name: {"to": REFERENCES[name], **ratio.as_json()} for name, ratio in ratios.items()},
        "required": {name: bound.bound for name, bound in BOUNDS.items()},
    }
    bars = [
        Bar.of_ratio(f"{name}, to {REFERENCES[name]}", ratio.as_json(), BOUNDS.get(name))
        for name, ratio in ratios.items()
    ]
    result |= chart(f"{images:,} images of 28x28, end to end", "throughput over that of the bare loop", bars)
    result["text"] = _text(result, ratios)
    return result


def _ways(manifest: Manifest, loops: BareLoops) -> dict[str, Callable[[int], float]]:
    """Seconds per image of one turn of each way."""
    run, threads = Path(manifest.output), manifest.compute.threads

    def stage(name: EngineName, table: str, work: Callable[[Manifest, Engine], object]) -> float:
        shutil.rmtree(run / table, ignore_errors=True)
        work(manifest, choose_engine(name, manifest))
        return _seconds_per_image([*(run / table).rglob("part-*.parquet")])

    def loop(work: Callable[[], object]) -> float:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) / loops.count

    return {
        "infer, ray": lambda _: stage("ray", "predictions", infer),
        "merged loop": lambda _: loop(loops.merged),
        "infer, local": lambda _: stage("local", "predictions", infer),
        "plain loop": lambda _: loop(loops.plain),
        "precompute, ray": lambda _: stage("ray", "evidence", precompute),
        "both loop": lambda _: loop(loops.both),
        "precompute, local": lambda _: stage("local", "evidence", precompute),
    }


def _seconds_per_image(parts: Sequence[Path]) -> float:
    """From the moment the first part was written to that of the last, over the images of all but the first."""
    written = sorted((path.stat().st_mtime_ns, pq.read_metadata(path).num_rows) for path in parts)
    images = sum(rows for _, rows in written[1:])
    return float((written[-1][0] - written[0][0]) / 1e9 / images)


def _text(result: Mapping[str, Any], ratios: Mapping[str, Ratio]) -> str:
    lines = [f"{result['images']:,} images of 28x28, {result['threads']} threads, {result['pairs']} turns"]
    for name, rate in result["images_per_second"].items():
        line = f"  {name:<18}{rate:9,.0f} images/s"
        if name in ratios:
            line += f"   {ratios[name].text()} of the {REFERENCES[name]}"
        if name in BOUNDS:
            line += f"; {BOUNDS[name].text(ratios[name].median)}"
        lines.append(line)
    return "\n".join(lines)
