"""``pipeline infer``: the batch plan in order of λ, one merge per batch, to predictions."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.drivers.opening import open_run, record_run
from pipeline.drivers.precompute import accepted_images, derive_coefficients, embed, missing_evidence
from pipeline.drivers.summary import Summary, sum_ledgers
from pipeline.engines.engine import Engine, Job
from pipeline.errors import ManifestError, RunDirectoryError
from pipeline.manifest.schema import Manifest
from pipeline.methods import Combination
from pipeline.progress import sample_progress
from pipeline.stages.context import RunContext
from pipeline.stages.grid import commit_oracle
from pipeline.stages.infer import STAGE, MakeInferWorker, committed_slices, is_committed_part, window_of
from pipeline.stages.online import MakeOnlineWorker
from pipeline.stages.plain import commit_plain
from pipeline.stages.plan import covered_rows, plan_path
from pipeline.stages.selection import Selected, select_methods
from pipeline.stages.static import ledger_stage
from pipeline.stages.work import Report, WorkItem
from pipeline.store.lease import hold_lease


def infer(
    manifest: Manifest,
    engine: Engine,
    *,
    names: Sequence[str] = (),
    online: bool = False,
    allow_code: bool = False,
) -> Summary:
    """Commit the predictions of ``names``, by default the manifest's methods; slices that are there are left alone.

    With ``online``, λ is computed on the fly and nothing cached is read; only methods that merge per batch can be
    asked for.
    """
    methods = _choose_methods(manifest, names, online=online)
    with hold_lease(Path(manifest.output)):
        context, models = open_run(manifest, engine, methods, allow_code=allow_code)
        summary = Summary(STAGE, manifest.output)
        if not online:
            require_evidence(context)
        embed(context, models, engine, summary, _of(methods, "static"))
        if not online:
            derive_coefficients(context, methods)
        missing = _missing_slices(context, _of(methods, "batch"), summary, online=online)
        missing += _missing_parts(context, _of(methods, "static", "grid"), summary)
        record_run(context, "inferring")
        for selected in _of(methods, "source", "ensemble"):
            _commit_plain(context, selected, summary)
        _run(context, engine, missing, summary, online=online)
        for selected in _of(methods, "grid"):
            for item in manifest.evaluation_sets:
                written, kept = commit_oracle(context, item.name, selected)
                summary.computed += written
                summary.skipped += kept
        totals = _record(context, methods)
        context.directory.update_record(state="inferred", ledger={STAGE: totals})
        summary.totals = totals
    return summary


def _choose_methods(manifest: Manifest, names: Sequence[str], *, online: bool) -> list[Selected]:
    chosen = select_methods(manifest, names)
    if not online:
        return chosen
    others = [selected.method.name for selected in chosen if selected.method.combination != "batch"]
    if names and others:
        raise ManifestError(f"--online: {', '.join(others)} needs no λ to be cached; leave out --online, or the method")
    if not _of(chosen, "batch"):
        raise ManifestError("--online: none of the manifest's methods merges per batch; leave out --online")
    return _of(chosen, "batch")


def _of(methods: Sequence[Selected], *combinations: Combination) -> list[Selected]:
    return [selected for selected in methods if selected.method.combination in combinations]


def require_evidence(context: RunContext) -> None:
    """:class:`RunDirectoryError` naming the evaluation sets whose evidence is incomplete."""
    missing = missing_evidence(context)
    if missing:
        sets = ", ".join(sorted({item.evaluation_set for item in missing}))
        raise RunDirectoryError(
            f"{context.directory.root}: {len(missing)} parts have no evidence yet ({sets}); run `pipeline precompute`"
        )


def _commit_plain(context: RunContext, selected: Selected, summary: Summary) -> None:
    for item in context.manifest.evaluation_sets:
        archive = context.archive(item.name)
        for part in range(archive.parts):
            if commit_plain(context, item.name, archive, part, selected):
                summary.computed += 1
            else:
                summary.skipped += 1


def _run(context: RunContext, engine: Engine, slices: list[WorkItem], summary: Summary, *, online: bool) -> None:
    total = sum(accepted_images(context, slices).values())
    items = list(dict.fromkeys(_window_item(context, item) for item in slices)) if online else slices
    make_worker = MakeOnlineWorker(context) if online else MakeInferWorker(context)
    with sample_progress(STAGE, total) as progress:

        def on_report(report: Report) -> None:
            summary.count(report)
            progress.advance(report.samples)

        engine.run(Job(STAGE, items, make_worker, scores=True), on_report)


def _missing_slices(
    context: RunContext, methods: Sequence[Selected], summary: Summary, *, online: bool
) -> list[WorkItem]:
    """Slices without predictions, or whose plan was made again since; online, no plan is known yet."""
    missing = []
    for selected in methods:
        for item in context.manifest.evaluation_sets:
            archive = context.archive(item.name)
            for window in context.windows(archive):
                rows = None if online else covered_rows(plan_path(context, item.name, window, selected))
                done = committed_slices(context, item.name, archive, window, selected, rows)
                missing += [WorkItem(item.name, part, selected.key) for part in window.part_numbers if part not in done]
                summary.skipped += len(done)
    return missing


def _missing_parts(context: RunContext, methods: Sequence[Selected], summary: Summary) -> list[WorkItem]:
    """Archive parts that a static merge has not scored yet, or a grid of λ, whose predictions come afterwards."""
    missing = []
    for selected in methods:
        is_grid = selected.method.combination == "grid"
        for item in context.manifest.evaluation_sets:
            archive = context.archive(item.name)
            for part in range(archive.parts):
                rows = covered_rows(context.directory.evidence(item.name, part))
                if not is_committed_part(context, item.name, archive, part, selected, rows):
                    missing.append(WorkItem(item.name, part, selected.key))
                elif not is_grid:
                    summary.skipped += 1
    return missing


def _window_item(context: RunContext, item: WorkItem) -> WorkItem:
    archive = context.archive(item.evaluation_set)
    return WorkItem(item.evaluation_set, window_of(context, archive, item.part).index, item.method)


def _record(context: RunContext, methods: Sequence[Selected]) -> dict[str, object]:
    """Ledgers per method over all of its parts, those of earlier invocations too; a plain model's is empty."""
    directory = context.directory
    totals: dict[str, object] = {}
    if directory.record_path.exists():
        totals |= directory.read_record().get("ledger", {}).get(STAGE, {})
    for selected in methods:
        directory.write_variant(directory.root / "predictions" / selected.key, selected.variant)
        totals[selected.key] = sum_ledgers(
            directory.root / "ledger", f"{STAGE}/{selected.key}", ledger_stage(selected)
        ).as_json()
    return totals
