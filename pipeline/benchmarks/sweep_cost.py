"""A sweep against ``infer`` for its distinct batch plans alone, on copies of the same run, interleaved."""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.benchmarks.bars import Bar, chart
from pipeline.benchmarks.requirements import SWEEP_TO_INFER
from pipeline.benchmarks.turns import median_ratio
from pipeline.drivers.grids import Grid, expand
from pipeline.drivers.infer import infer
from pipeline.drivers.sweep import manifest_of, sweep
from pipeline.engines.local import LocalEngine
from pipeline.errors import RunDirectoryError
from pipeline.manifest.schema import Manifest
from pipeline.results.sweeps import SCORED, evaluate_sweep

# 24 settings. With no generalist confident, δ says nothing where τ of the expert is 0 either.
GRID = Grid(
    ("t3",),
    ("arrival",),
    {
        "gamma": ("0.5", "1", "2", "4"),
        "delta": ("0.2", "0.5", "0.6"),
        "tau_expert": ("0", "0.05"),
        "tau_generalist": ("0",),
    },
)
NAME = "bench"


def sweep_cost(run: Path, turns: int, folder: Path) -> dict[str, Any]:
    """Seconds of a sweep over 24 settings of ``t3-batch`` and of ``infer`` for the distinct ones, ``turns`` times.

    Both start from copies of ``run`` in ``folder`` that hold its evidence and class embeddings alone, run in this
    process and include loading the models. ``ratio`` is the median over the turns, of wall time and of the process's
    CPU time; it is to be at most 1.2, which is reported, not enforced. The first turn finds out which settings are
    distinct (scored on any evaluation set) and is dropped. :class:`RunDirectoryError` when ``folder`` is there already.
    """
    if folder.exists():
        raise RunDirectoryError(f"{folder}: is there already; give another --scratch, or delete it")
    try:
        frame, distinct, seconds = _take_turns(run, turns, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ratios = {
        clock: median_ratio([turn[clock] for turn in seconds["sweep"]], [turn[clock] for turn in seconds["infer"]])
        for clock in ("wall", "cpu")
    }
    result: dict[str, Any] = {
        "run": str(run),
        "settings": frame["key"].n_unique(),
        "distinct": len(distinct),
        "turns": turns,
        "seconds": seconds,
        "ratio": {clock: ratio.median for clock, ratio in ratios.items()},
        "required": SWEEP_TO_INFER.bound,
    }
    bars = [
        Bar.of_ratio(f"{clock} time", ratio.as_json(), SWEEP_TO_INFER if clock == "wall" else None)
        for clock, ratio in ratios.items()
    ]
    result |= chart(f"A sweep over {result['settings']} settings", "time over that of infer for distinct ones", bars)
    result["text"] = _text(result)
    return result


def _take_turns(
    run: Path, turns: int, folder: Path
) -> tuple[pl.DataFrame, list[str], dict[str, list[dict[str, float]]]]:
    """The sweep's results, the keys of its distinct settings, and seconds of both ways by turn and clock."""
    original = manifest_of(run)
    _in_copy(run, folder / "first", _sweep)
    frame = evaluate_sweep(folder / "first", NAME).frame
    distinct = frame.filter(work=SCORED)["key"].unique().to_list()
    methods = [
        {"name": selected.method.name, **selected.settings}
        for selected in expand(GRID, original)
        if selected.key in distinct
    ]
    seconds: dict[str, list[dict[str, float]]] = {"sweep": [], "infer": []}
    for turn in range(turns):
        seconds["sweep"].append(_in_copy(run, folder / f"sweep-{turn}", _sweep))
        seconds["infer"].append(_in_copy(run, folder / f"infer-{turn}", lambda manifest: _infer(manifest, methods)))
    return frame, distinct, seconds


def _sweep(manifest: Manifest) -> None:
    sweep(manifest, GRID, expand(GRID, manifest), LocalEngine(manifest), name=NAME)


def _infer(manifest: Manifest, methods: list[dict[str, Any]]) -> None:
    chosen = Manifest.model_validate({**manifest.model_dump(), "methods": methods})
    infer(chosen, LocalEngine(chosen))


def _in_copy(run: Path, copy: Path, work: Callable[[Manifest], None]) -> dict[str, float]:
    """Seconds that ``work`` takes on a copy of what stage one left."""
    copy.mkdir(parents=True)
    shutil.copy(run / "run.json", copy)
    for kind in ("evidence", "embeddings"):
        shutil.copytree(run / kind, copy / kind)
    manifest = manifest_of(copy)
    wall, cpu = time.perf_counter(), time.process_time()
    work(manifest)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _text(result: Mapping[str, Any]) -> str:
    ratio = result["ratio"]
    return "\n".join(
        [
            f"{result['run']}: {result['settings']} settings, {result['distinct']} distinct, {result['turns']} turns",
            f"  the sweep takes {ratio['wall']:.2f} of infer's time for the distinct ones ({ratio['cpu']:.2f} of its "
            f"CPU time); {SWEEP_TO_INFER.text(ratio['wall'])}",
        ]
    )
