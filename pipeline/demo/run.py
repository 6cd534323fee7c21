"""Runs every step of the main job in one process, with Ray, and says what it reused."""

from importlib import resources
from pathlib import Path

from pipeline.console import table_console
from pipeline.drivers.finetune import finetune
from pipeline.drivers.infer import infer
from pipeline.drivers.ingest import ingest
from pipeline.drivers.precompute import precompute
from pipeline.drivers.summary import Summary
from pipeline.engines.engine import choose_engine
from pipeline.manifest import load_manifest
from pipeline.results.metrics import evaluate_run
from pipeline.results.report import write_report
from pipeline.results.tables import ledger_table, results_table
from pipeline.store.files import write_text
from pipeline.store.run_directory import RunDirectory

FILES = ("demo.yaml", "tiny.json")


def run_demo(folder: Path) -> None:
    """Make two tiny models and four synthetic archives below ``folder``, run both stages, print tables and report.

    What an earlier run left there is reused. An edited ``demo.yaml`` in ``folder`` is respected.
    """
    console = table_console()
    manifest_path = _copy_inputs(folder)
    manifest = load_manifest(manifest_path)
    for trained in finetune(manifest):
        state = "reused" if trained.up_to_date else f"trained, best epoch {trained.best_epoch}"
        console.print(f"{trained.role}: {state}", highlight=False)
    engine = choose_engine("ray", manifest)
    for summary in (ingest(manifest, engine), precompute(manifest, engine), infer(manifest, engine)):
        console.print(_one_line(summary), highlight=False)
    run = Path(manifest.output)
    console.print(results_table(evaluate_run(run)))
    console.print(ledger_table(RunDirectory(run).read_record()))
    console.print(
        f"manifest: {manifest_path}", f"report:   {write_report(run)}", sep="\n", highlight=False, soft_wrap=True
    )


def _copy_inputs(folder: Path) -> Path:
    for name in FILES:
        if not (folder / name).exists():
            write_text(folder / name, resources.files("pipeline.demo").joinpath(name).read_text(encoding="utf-8"))
    return folder / "demo.yaml"


def _one_line(summary: Summary) -> str:
    reused = f", {summary.skipped:,} parts reused from an earlier run" if summary.skipped else ""
    return f"{summary.stage}: {summary.computed:,} parts computed{reused}"
