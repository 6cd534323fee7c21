"""The command line: parse, call one function, print. What a command does is in :mod:`pipeline.drivers`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from pipeline.engines.engine import EngineName
from pipeline.errors import PipelineError, ProblemsError
from pipeline.manifest import Manifest, load_manifest, manifest_schema

INTERRUPTED = 130
HELP = "Test-time merging of medical vision-language models: precompute λ once, then infer at the price of one model."

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)
manifest_app = typer.Typer(no_args_is_help=True, help="About the manifest itself.")
bench_app = typer.Typer(no_args_is_help=True, help="Benchmarks: ratios measured side by side, and memory as N grows.")
app.add_typer(manifest_app, name="manifest")
app.add_typer(bench_app, name="bench")

ManifestPath = Annotated[Path, typer.Argument(metavar="MANIFEST", help="YAML file that describes the run.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, as `precompute` wrote it.")]
Output = Annotated[Path | None, typer.Option("--output", help="Run directory to use instead of the manifest's.")]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder of published files; else PIPELINE_DATA_ROOT.")
]
EngineOption = Annotated[EngineName, typer.Option("--engine", help="ray: a pool of workers; local: this process.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Workers instead of compute.workers.")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Let rules of your own (module:function) run: they are code.")
]
Values = Annotated[list[str] | None, typer.Option(metavar="V,V", help="Values to try, comma-separated; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]


def main() -> None:
    """Run the command line; a user's mistake is printed as one line per problem and ends with its exit code."""
    try:
        app()
    except PipelineError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as end:
        # Typer turns an interrupt into this exit code, and says nothing.
        if end.code == INTERRUPTED:
            print("interrupted: what is committed is kept; run the same command again to go on", file=sys.stderr)
        raise


@app.command()
def validate(manifest: ManifestPath, data_root: DataRoot = None, allow_code: AllowCode = False) -> None:
    """Check what can be checked before work starts: manifest, models, methods, prompts, sources, archives."""
    settings = load_manifest(manifest, data_root=data_root)
    from pipeline.drivers.validate import validate as check

    for line in check(settings, allow_code=allow_code):
        print(line)
    print("valid")


@app.command()
def check(
    manifest: ManifestPath,
    training: Annotated[
        list[Path] | None, typer.Option("--training", help="Manifest that trained some of the models; repeatable.")
    ] = None,
    fail_on_leak: Annotated[
        bool, typer.Option("--fail-on-leak", help="Exit with 2 when training and evaluation share images.")
    ] = False,
    output: Output = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Find images that training and evaluation share, duplicates, and class names that do not line up."""
    settings = load_manifest(manifest, output=output, data_root=data_root)
    others = [load_manifest(path, data_root=data_root) for path in training or []]
    from pipeline.drivers.check import check as run
    from pipeline.results.checks import checks_lines, checks_table, has_leak

    result = run(settings, others)
    if as_json:
        _print_json(result)
    else:
        Console().print(checks_table(result))
        print("\n".join(checks_lines(result)))
    if fail_on_leak and has_leak(result):
        raise typer.Exit(PipelineError.exit_code)


@app.command()
def ingest(
    manifest: ManifestPath,
    engine: EngineOption = "ray",
    workers: Workers = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Decode and resize every evaluation set once, into Zarr archives."""
    settings = load_manifest(manifest, data_root=data_root)
    from pipeline.drivers.ingest import ingest as run

    _print_summary(run(settings, _engine(engine, settings, workers)), as_json=as_json)


@app.command()
def finetune(
    manifest: ManifestPath,
    role: Annotated[str | None, typer.Option("--role", help="Train this model only, by its name.")] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Train the models that the manifest's finetune section describes; resumes by itself."""
    settings = load_manifest(manifest, data_root=data_root)
    from pipeline.drivers.finetune import finetune as run

    trained = run(settings, role)
    if as_json:
        _print_json([{name: getattr(item, name) for name in item.__slots__} for item in trained])
        return
    for item in trained:
        accuracy = ", ".join(f"{name} {value:.2%}" for name, value in item.validation_accuracy.items())
        state = "up to date" if item.up_to_date else f"best epoch {item.best_epoch}"
        print(f"{item.role}: {item.output} ({state}; validation accuracy {accuracy})")


@app.command()
def precompute(
    manifest: ManifestPath,
    engine: EngineOption = "ray",
    workers: Workers = None,
    output: Output = None,
    data_root: DataRoot = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Stage one: run all models over the archives once; cache evidence and λ in Parquet."""
    settings = load_manifest(manifest, output=output, data_root=data_root)
    from pipeline.drivers.precompute import precompute as run

    _print_summary(run(settings, _engine(engine, settings, workers), allow_code=allow_code), as_json=as_json)


@app.command()
def infer(
    manifest: ManifestPath,
    method: Annotated[list[str] | None, typer.Option("--method", help="Method to compute; repeatable.")] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Compute λ on the fly instead of reading the cache.")
    ] = False,
    engine: EngineOption = "ray",
    workers: Workers = None,
    output: Output = None,
    data_root: DataRoot = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Stage two: stream batches in order of λ, merge once per batch, score, commit predictions."""
    settings = load_manifest(manifest, output=output, data_root=data_root)
    from pipeline.drivers.infer import infer as run

    chosen = _engine(engine, settings, workers)
    summary = run(settings, chosen, names=method or [], online=online, allow_code=allow_code)
    _print_summary(summary, as_json=as_json)


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, as `precompute` wrote them.")],
    as_json: Json = False,
) -> None:
    """Metrics with 95 % intervals of every method on every evaluation set, of all runs in one table."""
    from pipeline.results.metrics import evaluate_runs
    from pipeline.results.tables import marks_lines, results_json, results_table

    frame = evaluate_runs(runs)
    if as_json:
        _print_json(results_json(frame))
        return
    Console().print(results_table(frame))
    for line in marks_lines(frame):
        print(line)


@app.command()
def study(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST...", help="Manifests, or folders of them: one study.")
    ],
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", min=0, help="Instead of seeds.study; repeatable.")
    ] = None,
    engine: EngineOption = "ray",
    workers: Workers = None,
    data_root: DataRoot = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Run every manifest at every seed, from training to evaluation and checks, then report; resumes by itself."""
    from pipeline.drivers.study import plan_study, run_study

    runs = plan_study(manifests, seeds=seeds or [], data_root=data_root)
    summary = run_study(runs, engine, workers=workers, allow_code=allow_code)
    _print_json(summary.as_json()) if as_json else _print_study(summary)
    if summary.problems:
        raise ProblemsError(summary.problems)


@app.command()
def sweep(
    run: RunPath,
    rule: Values = None,
    grouping: Values = None,
    gamma: Values = None,
    delta: Values = None,
    mapping: Values = None,
    tau_expert: Values = None,
    tau_generalist: Values = None,
    lambda_min: Values = None,
    lambda_max: Values = None,
    batch_size: Values = None,
    tolerance: Values = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE,VALUE of any other setting; repeatable.")
    ] = None,
    table: Annotated[
        int | None, typer.Option("--table", help="Preset for a table of the T³ paper: 8, 9 or 10.")
    ] = None,
    figure: Annotated[int | None, typer.Option("--figure", help="Preset for a figure of it: 6, 9 or 10.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the files in RUN/sweeps; else made up.")] = None,
    max_settings: Annotated[int, typer.Option("--max-settings", min=1, help="Largest grid to compute.")] = 1000,
    engine: EngineOption = "ray",
    workers: Workers = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Try many settings on the cached evidence of a run: every combination, stage two only, equal plans once."""
    from pipeline.drivers.grids import expand, find_preset, read_grid
    from pipeline.drivers.sweep import manifest_of
    from pipeline.drivers.sweep import sweep as sweep_run
    from pipeline.results.sweeps import evaluate_sweep, sweep_table

    values = {"gamma": gamma, "delta": delta, "mapping": mapping, "tau_expert": tau_expert}
    values |= {"tau_generalist": tau_generalist, "lambda_min": lambda_min, "lambda_max": lambda_max}
    values |= {"batch_size": batch_size, "tolerance": tolerance}
    preset = find_preset(table, figure)
    grid = read_grid(rule or [], grouping or [], values, assignments or [], preset)
    settings = manifest_of(run)
    methods = expand(grid, settings, max_settings)
    swept = sweep_run(settings, grid, methods, _engine(engine, settings, workers), name=name, allow_code=allow_code)
    results = evaluate_sweep(run, swept.name)
    if as_json:
        _print_json({**swept.as_json(), "preset": preset and preset.shows, **results.as_json()})
        return
    if preset:
        print(preset.shows)
    Console().print(sweep_table(results))
    print(f"{swept.text()}\n{results.table}\n{results.figure}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several make one report.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder instead of RUN/report, or of report beside several runs.")
    ] = None,
    kind: Annotated[
        Literal["html", "latex", "csv", "json"], typer.Option("--format", help="The page, or every table as a file.")
    ] = "html",
) -> None:
    """Write a self-contained HTML page about one run or several, or export its tables; print the paths."""
    from pipeline.results.report import export_tables, write_report

    if kind == "html":
        print(write_report(*runs, output=output))
        return
    for path in export_tables(*runs, kind=kind, output=output):
        print(path)


@app.command()
def methods(as_json: Json = False) -> None:
    """List every method: formula, cost class, what it needs, settings with defaults, source."""
    from pipeline.methods import METHODS
    from pipeline.results.methods import methods_text

    if as_json:
        _print_json([method.as_json() for method in METHODS.values()])
    else:
        print(methods_text(METHODS.values()))


@app.command()
def merge(
    manifest: ManifestPath,
    out: Annotated[Path, typer.Option("--out", help="File to write, .safetensors.")],
    method: Annotated[str | None, typer.Option("--method", help="A static method, such as soup.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of the method; repeatable.")] = None,
    lam: Annotated[float | None, typer.Option("--lambda", help="Instead of a method: θ(λ) of the pair.")] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Export one merged checkpoint that open_clip (for a classifier: timm) loads, with its card."""
    loaded = load_manifest(manifest, data_root=data_root)
    from pipeline.drivers.merge import merge as run

    card = run(loaded, out, method=method, settings=settings or [], lam=lam)
    if as_json:
        _print_json({"output": str(out), "card": card})
    else:
        print(out)


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|ARCHIVE|MANIFEST", help="Run directory, archive folder or manifest.")
    ],
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Explain a run or an archive; for a manifest, show how far its models are apart, layer by layer."""
    if path.suffix in {".yaml", ".yml"}:
        _inspect_models(load_manifest(path, data_root=data_root), as_json=as_json)
        return
    from pipeline.drivers.inspect import inspect as describe
    from pipeline.results.inspection import inspection_text

    found = describe(path)
    if as_json:
        _print_json(found)
    else:
        print(inspection_text(found))


@app.command()
def datasets(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="Manifests whose sets are ingested.")],
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Statistics and provenance of all evaluation sets: counts per class, sizes, files, digests, licences."""
    loaded = [load_manifest(path, data_root=data_root) for path in manifests]
    from pipeline.drivers.datasets import list_datasets
    from pipeline.results.dataset_tables import datasets_json, datasets_tables

    found = list_datasets(loaded)
    if as_json:
        _print_json(datasets_json(*found))
    else:
        Console().print(*datasets_tables(*found), sep="\n")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where the demo puts everything.")] = Path("runs/demo"),
) -> None:
    """Train a tiny pair on synthetic images, precompute, infer, evaluate, report: three minutes on two cores."""
    from pipeline.demo import run_demo

    run_demo(folder)


@manifest_app.command("schema")
def schema() -> None:
    """Print the manifest's JSON Schema."""
    _print_json(manifest_schema())


@bench_app.command("merge")
def bench_merge(
    architecture: Annotated[str, typer.Option("--architecture", help="open_clip name or JSON file.")] = "ViT-B-16",
    pairs: Annotated[int, typer.Option("--pairs", min=3, help="Interleaved measurements of each way.")] = 8,
    threads: Annotated[int, typer.Option("--threads", min=1, help="As compute.threads of a worker.")] = 1,
    as_json: Json = False,
) -> None:
    """One merge against the usual state_dict loop, side by side."""
    from pipeline.benchmarks.merge_speed import merge_speed

    result = merge_speed(architecture, pairs, threads)
    _print_json(result) if as_json else print(result["text"])


@bench_app.command("memory")
def bench_memory(
    images: Annotated[list[int] | None, typer.Option("--images", help="Archive sizes; at least two.")] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Scratch folder.")] = Path("runs/bench-memory"),
    as_json: Json = False,
) -> None:
    """Largest unique set size of any process in precompute and infer, as the archive grows."""
    from pipeline.benchmarks.memory_growth import memory_growth

    result = memory_growth(images or [20_000, 200_000], folder)
    _print_json(result) if as_json else print(result["text"])


@bench_app.command("sweep")
def bench_sweep(
    run: RunPath,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Interleaved measurements of each way.")] = 3,
    folder: Annotated[Path, typer.Option("--folder", help="Scratch folder.")] = Path("runs/bench-sweep"),
    as_json: Json = False,
) -> None:
    """A sweep over 24 settings against infer for its distinct batch plans, side by side."""
    from pipeline.benchmarks.sweep_cost import sweep_cost

    result = sweep_cost(run, turns, folder)
    _print_json(result) if as_json else print(result["text"])


def _inspect_models(manifest: Manifest, *, as_json: bool) -> None:
    from pipeline.drivers.distances import model_distances
    from pipeline.results.distances import distances_json, distances_table

    found, figure = model_distances(manifest)
    if as_json:
        _print_json({"figure": str(figure), "pairs": distances_json(found)})
        return
    Console().print(distances_table(found))
    print(figure)


def _print_study(summary: Any) -> None:
    from pipeline.results.report import write_report
    from pipeline.results.studies import combine
    from pipeline.results.tables import study_table

    if summary.runs:
        Console().print(study_table(combine(summary.runs)))
        print(f"report: {write_report(*summary.runs, output=summary.folder / 'report')}")
    for line in summary.missing:
        print(f"missing: {line}")


def _engine(name: EngineName, manifest: Manifest, workers: int | None) -> Any:
    from pipeline.engines.engine import choose_engine

    return choose_engine(name, manifest, workers)


def _print_summary(summary: Any, *, as_json: bool) -> None:
    if as_json:
        _print_json(summary.as_json())
        return
    print(summary.text())


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
