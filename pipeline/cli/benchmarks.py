"""Benchmarks: ratios measured side by side, and memory as N grows."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import (
    Json,
    RunPath,
    print_json,
)

app = typer.Typer()


@app.command("merge")
def bench_merge(
    architecture: Annotated[str, typer.Option("--architecture", help="open_clip name or JSON file.")] = "ViT-B-16",
    pairs: Annotated[int, typer.Option("--pairs", min=3, help="Interleaved measurements of each way.")] = 8,
    threads: Annotated[int, typer.Option("--threads", min=1, help="As compute.threads of a worker.")] = 1,
    as_json: Json = False,
) -> None:
    """One merge against the usual state_dict loop, side by side."""
    from pipeline.benchmarks.merge_speed import merge_speed

    result = merge_speed(architecture, pairs, threads)
    print_json(result) if as_json else print(result["text"])


@app.command("memory")
def bench_memory(
    images: Annotated[list[int] | None, typer.Option("--images", help="Archive sizes; at least two.")] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Scratch folder.")] = Path("runs/bench-memory"),
    as_json: Json = False,
) -> None:
    """Largest unique set size of any process in precompute and infer, as the archive grows."""
    from pipeline.benchmarks.memory_growth import memory_growth

    result = memory_growth(images or [20_000, 200_000], folder)
    print_json(result) if as_json else print(result["text"])


@app.command("sweep")
def bench_sweep(
    run: RunPath,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Interleaved measurements of each way.")] = 3,
    folder: Annotated[Path, typer.Option("--folder", help="Scratch folder.")] = Path("runs/bench-sweep"),
    as_json: Json = False,
) -> None:
    """A sweep over 24 settings against infer for its distinct batch plans, side by side."""
    from pipeline.benchmarks.sweep_cost import sweep_cost

    result = sweep_cost(run, turns, folder)
    print_json(result) if as_json else print(result["text"])


@app.command("scoring")
def bench_scoring(
    architecture: Annotated[
        str, typer.Option("--architecture", help="open_clip or timm name, or JSON file.")
    ] = "ViT-B-32",
    tile: Annotated[int, typer.Option("--tile", min=1, help="As compute.tile.")] = 32,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Random images per measurement.")] = 32,
    pairs: Annotated[int, typer.Option("--pairs", min=3, help="Interleaved measurements of each way.")] = 8,
    threads: Annotated[int, typer.Option("--threads", min=1, help="As compute.threads of a worker.")] = 1,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")] = "cpu",
    folder: Annotated[Path, typer.Option("--folder", help="Where the result is kept.")] = Path("runs/bench"),
    as_json: Json = False,
) -> None:
    """One model's forward with channels_last, torch.compile, bf16 and autocast: time and error, side by side."""
    from pipeline.benchmarks.machine import keep_result
    from pipeline.benchmarks.scoring_options import scoring_options
    from pipeline.models.numeric_kind import choose_device

    place = choose_device(device).type
    measured = scoring_options(architecture, tile=tile, samples=samples, pairs=pairs, threads=threads, device=place)
    result = keep_result("scoring", measured, folder, device=place)
    print_json(result) if as_json else print(result["text"])
