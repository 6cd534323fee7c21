"""Benchmarks: ratios measured side by side, and memory as N grows."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.cli.options import DataRoot, Json, RunPath, print_json

HELP = "What merging costs, measured side by side on this machine: without a command, every way of it in one table."

app = typer.Typer(invoke_without_command=True, help=HELP)

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Architecture = Annotated[str, typer.Option("--architecture", help="open_clip name, timm:NAME or JSON file.")]
Pairs = Annotated[int, typer.Option("--pairs", min=3, help="Interleaved turns of each way, after one to warm up.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of torch; by default one for each core.")]
Classes = Annotated[int, typer.Option("--classes", min=2, help="Classes in the prompts.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Of the forwards.")]
Folder = Annotated[Path, typer.Option("--folder", help="Where the result is kept, for `pipeline report --bench`.")]
RESULTS = Path("runs/bench")


@app.callback()
def methods(
    context: typer.Context,
    architecture: Architecture = "ViT-B-16",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images that share a merged model.")] = 32,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Images of a turn.")] = 32,
    classes: Classes = 8,
    tolerance: Annotated[
        list[float] | None, typer.Option("--tolerance", min=0, max=1, help="ε of a row t3-lambda@ε; repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ROW", help="Measure this row beside plain; repeatable.")
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option("--precision", help="Of the image towers.")
    ] = "fp32",
    pairs: Pairs = 8,
    threads: Threads = CORES,
    folder: Folder = RESULTS,
    as_json: Json = False,
) -> None:
    """Every way of merging against one plain model: ratio with interval, forwards, merges, bytes, memory."""
    if context.invoked_subcommand is not None:
        _refuse_misplaced(context)
        return
    from pipeline.benchmarks.method_costs import Setting, method_costs

    setting = Setting(
        architecture=architecture,
        samples=samples,
        batch_size=batch_size,
        classes=classes,
        device=_device(device),
        precision=precision,
        threads=threads,
        pairs=pairs,
        tolerances=tuple(tolerance or [0.01]),
        only=tuple(only or []),
    )
    measure = partial(method_costs, setting)
    _show(f"methods-{_slug(architecture)}", measure, folder, as_json=as_json, device=setting.device)


@app.command("scaling")
def bench_scaling(
    architecture: Architecture = "ViT-B-32",
    samples: Annotated[
        list[int] | None, typer.Option("--samples", min=1, help="Numbers of images; repeatable.")
    ] = None,
    batch_size: Annotated[list[int] | None, typer.Option("--batch-size", min=1, help="Repeatable.")] = None,
    classes: Annotated[list[int] | None, typer.Option("--classes", min=2, help="Repeatable.")] = None,
    pairs: Pairs = 3,
    threads: Threads = CORES,
    folder: Folder = RESULTS,
    as_json: Json = False,
) -> None:
    """The same table for other numbers of images, batch sizes and numbers of classes, one changed at a time."""
    from pipeline.benchmarks.method_costs import Setting
    from pipeline.benchmarks.scaling import scaling

    measure = partial(
        scaling,
        # A row of t3-lambda would take as long as most others together, and is not shown.
        Setting(architecture=architecture, samples=32, pairs=pairs, threads=threads, tolerances=()),
        samples=samples or [64],
        batch_sizes=batch_size or [8],
        classes=classes or [2, 64],
    )
    _show(f"scaling-{_slug(architecture)}", measure, folder, as_json=as_json)


@app.command("merge")
def bench_merge(
    architecture: Architecture = "ViT-B-16",
    pairs: Pairs = 8,
    threads: Threads = CORES,
    folder: Folder = RESULTS,
    as_json: Json = False,
) -> None:
    """One merge against a pass over as much memory, and against loops over state dicts."""
    from pipeline.benchmarks.merge_speed import merge_speed

    _show("merge", partial(merge_speed, architecture, pairs, threads), folder, as_json=as_json)


@app.command("curve")
def bench_curve(
    architecture: Architecture = "ViT-B-16",
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Look at this manifest's pair instead of a random one.")
    ] = None,
    classes: Classes = 8,
    lambdas: Annotated[int, typer.Option("--lambdas", min=1, help="Random λ at which the curve is checked.")] = 16,
    threads: Threads = CORES,
    folder: Folder = RESULTS,
    as_json: Json = False,
) -> None:
    """Class embeddings from their curve in λ against the text tower itself, at λ that the curve never saw."""
    from pipeline.benchmarks.curve_error import curve_error, pair_of

    models = None if manifest is None else pair_of(manifest)
    named = architecture if models is None else models.architecture.reference
    measure = partial(curve_error, named, classes=classes, lambdas=lambdas, threads=threads, models=models)
    _show("curve", measure, folder, as_json=as_json)


@app.command("memory")
def bench_memory(
    images: Annotated[
        list[int] | None,
        typer.Option("--images", min=1, help="Archive size; repeatable, at least two; else 20,000 and 1,000,000."),
    ] = None,
    scratch: Annotated[Path, typer.Option("--scratch", help="Archives and runs.")] = Path("runs/bench-memory"),
    folder: Folder = RESULTS,
    as_json: Json = False,
) -> None:
    """Largest unique set size of any process in precompute and infer, as the archive grows."""
    from pipeline.benchmarks.memory_growth import memory_growth

    _show("memory", partial(memory_growth, images or [20_000, 1_000_000], scratch), folder, as_json=as_json)


@app.command("sweep")
def bench_sweep(
    run: RunPath,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Interleaved measurements of each way.")] = 3,
    scratch: Annotated[Path, typer.Option("--scratch", help="Copies of the run.")] = Path("runs/bench-sweep"),
    folder: Folder = RESULTS,
    as_json: Json = False,
) -> None:
    """A sweep over 24 settings against infer for its distinct batch plans, side by side."""
    from pipeline.benchmarks.sweep_cost import sweep_cost

    _show("sweep", partial(sweep_cost, run, turns, scratch), folder, as_json=as_json)


@app.command("reads")
def bench_reads(
    images: Annotated[int, typer.Option("--images", min=1024, help="How many are read in a turn.")] = 2048,
    size: Annotated[int, typer.Option("--size", min=16, help="Pixels a side.")] = 224,
    pairs: Pairs = 8,
    threads: Annotated[int, typer.Option("--threads", min=1, help="That read at once.")] = 1,
    data: DataRoot = None,
    scratch: Annotated[Path, typer.Option("--scratch", help="The archive.")] = Path("runs/bench-reads"),
    folder: Folder = RESULTS,
    as_json: Json = False,
) -> None:
    """Shuffled reads of an archive against decoding the same bytes in memory, and codecs compared."""
    from pipeline.benchmarks.read_speed import read_speed

    named = data or os.environ.get("PIPELINE_DATA_ROOT")
    measure = partial(read_speed, images, size, pairs, threads, Path(named) if named else None, scratch)
    _show(f"reads-{size}", measure, folder, as_json=as_json)


@app.command("pipeline")
def bench_pipeline(
    images: Annotated[int, typer.Option("--images", min=1, help="Synthetic images of 28x28.")] = 65_536,
    pairs: Pairs = 6,
    threads: Annotated[int, typer.Option("--threads", min=1, help="As compute.threads of a worker.")] = 1,
    scratch: Annotated[Path, typer.Option("--scratch", help="The archive and its run.")] = Path("runs/bench-pipeline"),
    folder: Folder = RESULTS,
    as_json: Json = False,
) -> None:
    """Both stages, from archive to committed tables, against bare loops over images in memory."""
    from pipeline.benchmarks.end_to_end import end_to_end

    _show("pipeline", partial(end_to_end, images, pairs, threads, scratch), folder, as_json=as_json)


@app.command("scoring")
def bench_scoring(
    architecture: Architecture = "ViT-B-32",
    tile: Annotated[int, typer.Option("--tile", min=1, help="Images in a forward, as compute.tile.")] = 32,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Random images of a turn.")] = 32,
    pairs: Pairs = 8,
    threads: Threads = CORES,
    device: Device = "auto",
    folder: Folder = RESULTS,
    as_json: Json = False,
) -> None:
    """One model's forward with channels_last, torch.compile, bf16 and autocast: time and error, side by side."""
    from pipeline.benchmarks.scoring_options import scoring_options

    place = _device(device)
    measure = partial(
        scoring_options, architecture, tile=tile, samples=samples, pairs=pairs, threads=threads, device=place
    )
    _show(f"scoring-{_slug(architecture)}", measure, folder, as_json=as_json, device=place)


def _show(
    name: str, measure: Callable[[], dict[str, Any]], folder: Path, *, as_json: bool, device: str = "cpu"
) -> None:
    """Measure, keep the result for the report and print it, for people or for programs."""
    from pipeline.benchmarks.machine import keep_result, require_folder

    require_folder(folder)
    result = measure()
    kept = keep_result(name, result, folder, device=device)
    print_json(kept) if as_json else print(result["text"])


def _refuse_misplaced(context: typer.Context) -> None:
    """:class:`PipelineError` for options before a command: they are the table's, and would be ignored."""
    from pipeline.errors import PipelineError

    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    ]
    if given:
        command = context.invoked_subcommand
        raise PipelineError(f"{', '.join(given)}: stands before {command!r}, which would ignore it; put it after it")


def _device(asked: str) -> str:
    """``cpu`` or ``cuda``; :class:`NumericKindError` for one that is not there."""
    import torch

    from pipeline.errors import NumericKindError
    from pipeline.models.numeric_kind import choose_device

    if asked == "cuda" and not torch.cuda.is_available():
        raise NumericKindError("--device cuda: this machine has no CUDA device that torch sees; name auto or cpu")
    return choose_device(asked).type


def _slug(architecture: str) -> str:
    return Path(architecture).name.removesuffix(".json").replace(":", "-").replace("/", "-")
