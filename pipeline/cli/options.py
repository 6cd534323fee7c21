"""Options and arguments that several commands share, and how summaries and JSON are printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.engines.engine import Engine, EngineName, choose_engine
from pipeline.manifest import Manifest

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


def engine_of(name: EngineName, manifest: Manifest, workers: int | None) -> Engine:
    """The engine that a command was asked for."""
    return choose_engine(name, manifest, workers)


def print_summary(summary: Any, *, as_json: bool) -> None:
    """Print what a stage did, for people or for programs."""
    if as_json:
        print_json(summary.as_json())
        return
    print(summary.text())


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
