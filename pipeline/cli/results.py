"""Commands that look at what is there: metrics, reports, checks, data sets, weights, methods."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.options import (
    DataRoot,
    Json,
    ManifestPath,
    Output,
    print_json,
)
from pipeline.console import table_console
from pipeline.errors import PipelineError
from pipeline.manifest import Manifest, load_manifest, manifest_schema

app = typer.Typer()
manifest_app = typer.Typer(no_args_is_help=True, help="About the manifest itself.")
app.add_typer(manifest_app, name="manifest")


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
        print_json(results_json(frame))
        return
    table_console().print(results_table(frame))
    for line in marks_lines(frame):
        print(line)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several make one report.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder instead of RUN/report, or of report beside several runs.")
    ] = None,
    kind: Annotated[
        Literal["html", "latex", "csv", "json"], typer.Option("--format", help="The page, or every table as a file.")
    ] = "html",
    bench: Annotated[
        Path | None, typer.Option("--bench", help="Folder of `pipeline bench`: its figures become a chapter.")
    ] = None,
) -> None:
    """Write a self-contained HTML page about one run or several, or export its tables; print the paths."""
    from pipeline.results.report import export_tables, write_report

    if kind == "html":
        print(write_report(*runs, output=output, benchmarks=bench))
        return
    for path in export_tables(*runs, kind=kind, output=output):
        print(path)


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
        print_json(result)
    else:
        table_console().print(checks_table(result))
        print("\n".join(checks_lines(result)))
    if fail_on_leak and has_leak(result):
        raise typer.Exit(PipelineError.exit_code)


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
        print_json(datasets_json(*found))
    else:
        table_console().print(*datasets_tables(*found), sep="\n")


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
        print_json(found)
    else:
        print(inspection_text(found))


@app.command()
def methods(as_json: Json = False) -> None:
    """List every method: formula, cost class, what it needs, settings with defaults, source."""
    from pipeline.methods import METHODS
    from pipeline.results.methods import methods_text

    if as_json:
        print_json([method.as_json() for method in METHODS.values()])
    else:
        print(methods_text(METHODS.values()))


@manifest_app.command("schema")
def schema() -> None:
    """Print the manifest's JSON Schema."""
    print_json(manifest_schema())


def _inspect_models(manifest: Manifest, *, as_json: bool) -> None:
    from pipeline.drivers.distances import model_distances
    from pipeline.results.distances import distances_json, distances_table

    found, figure = model_distances(manifest)
    if as_json:
        print_json({"figure": str(figure), "pairs": distances_json(found)})
        return
    table_console().print(distances_table(found))
    print(figure)
