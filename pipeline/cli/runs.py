"""Commands that make things: models, archives, runs, studies."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.options import (
    AllowCode,
    DataRoot,
    EngineOption,
    Json,
    ManifestPath,
    Output,
    RunPath,
    Values,
    Workers,
    engine_of,
    print_json,
    print_summary,
)
from pipeline.console import table_console
from pipeline.errors import ProblemsError
from pipeline.manifest import load_manifest

app = typer.Typer()


@app.command()
def validate(manifest: ManifestPath, data_root: DataRoot = None, allow_code: AllowCode = False) -> None:
    """Check what can be checked before work starts: manifest, models, methods, prompts, sources, archives."""
    settings = load_manifest(manifest, data_root=data_root)
    from pipeline.drivers.validate import InvalidManifestError
    from pipeline.drivers.validate import validate as check

    try:
        lines = check(settings, allow_code=allow_code)
    except InvalidManifestError as error:
        for line in error.awaited:
            print(line)
        raise
    for line in lines:
        print(line)
    print("valid")


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
        print_json([{name: getattr(item, name) for name in item.__slots__} for item in trained])
        return
    for item in trained:
        accuracy = ", ".join(f"{name} {value:.2%}" for name, value in item.validation_accuracy.items())
        state = "up to date" if item.up_to_date else f"best epoch {item.best_epoch}"
        print(f"{item.role}: {item.output} ({state}; validation accuracy {accuracy})")


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

    print_summary(run(settings, engine_of(engine, settings, workers)), as_json=as_json)


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

    print_summary(run(settings, engine_of(engine, settings, workers), allow_code=allow_code), as_json=as_json)


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

    chosen = engine_of(engine, settings, workers)
    summary = run(settings, chosen, names=method or [], online=online, allow_code=allow_code)
    print_summary(summary, as_json=as_json)


@app.command()
def plan(
    manifest: ManifestPath,
    workers: Annotated[
        list[int] | None, typer.Option("--workers", min=1, help="Workers instead of compute.workers; repeatable.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="About how long to measure.")] = 60.0,
    method: Annotated[list[str] | None, typer.Option("--method", help="Method to plan for; repeatable.")] = None,
    tolerance: Annotated[
        str | None, typer.Option("--tolerance", metavar="ε,ε", help="Tolerances to compare, comma-separated.")
    ] = None,
    output: Output = None,
    data_root: DataRoot = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Say what a run will cost: time, device hours, storage, memory, bottleneck; runs nothing and leaves no file."""
    settings = load_manifest(manifest, output=output, data_root=data_root)
    from pipeline.drivers.plan import plan as make_plan
    from pipeline.drivers.plan import read_tolerances
    from pipeline.results.plan_tables import plan_tables

    planned = make_plan(
        settings,
        workers=workers or [],
        seconds=seconds,
        names=method or [],
        tolerances=read_tolerances(tolerance),
        allow_code=allow_code,
    )
    if as_json:
        print_json(planned)
        return
    console = table_console()
    for table in plan_tables(planned):
        console.print(table)


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
    print_json(summary.as_json()) if as_json else _print_study(summary)
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
    swept = sweep_run(settings, grid, methods, engine_of(engine, settings, workers), name=name, allow_code=allow_code)
    results = evaluate_sweep(run, swept.name)
    if as_json:
        print_json({**swept.as_json(), "preset": preset and preset.shows, **results.as_json()})
        return
    if preset:
        print(preset.shows)
    table_console().print(sweep_table(results))
    print(f"{swept.text()}\n{results.table}\n{results.figure}")


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
        print_json({"output": str(out), "card": card})
    else:
        print(out)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where the demo puts everything.")] = Path("runs/demo"),
) -> None:
    """Train a tiny pair on synthetic images, precompute, infer, evaluate, report: three minutes on two cores."""
    from pipeline.demo import run_demo

    run_demo(folder)


def _print_study(summary: Any) -> None:
    from pipeline.results.studies import combine
    from pipeline.results.tables import study_table

    if summary.runs:
        table_console().print(study_table(combine(summary.runs)))
        print(f"report: {summary.report}")
    for line in summary.missing:
        print(f"missing: {line}")
