"""``pipeline infer``: the batch plan in order of λ, one merge per batch, to predictions."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.drivers.opening import open_run, record_run
from pipeline.drivers.precompute import accepted_images, derive_coefficients, embed, missing_evidence
from pipeline.drivers.summary import Summary, sum_ledgers
from pipeline.engines.engine import Engine, Job
from pipeline.errors import ManifestError, RunDirectoryError
from pipeline.manifest.schema import Manifest, check_method
from pipeline.methods import METHODS, Method
from pipeline.progress import sample_progress
from pipeline.stages.context import RunContext
from pipeline.stages.infer import STAGE, MakeInferWorker, plan_path, slice_fingerprints, window_of
from pipeline.stages.online import MakeOnlineWorker
from pipeline.stages.plain import commit_plain
from pipeline.stages.plan import covered_rows
from pipeline.stages.variants import method_variant
from pipeline.stages.work import Report, WorkItem
from pipeline.store.lease import hold_lease
from pipeline.store.ledger import Ledger
from pipeline.store.tables import PartState, part_state


def infer(manifest: Manifest, engine: Engine, *, names: Sequence[str] = (), online: bool = False) -> Summary:
    """Commit the predictions of ``names``, by default the manifest's methods; slices that are there are left alone.

    With ``online``, λ is computed on the fly and nothing cached is read; only merging methods can be asked for.
    """
    methods = _choose_methods(manifest, names, online=online)
    with hold_lease(Path(manifest.output)):
        context, pair = open_run(manifest, engine)
        summary = Summary(STAGE, manifest.output)
        if not online:
            _require_evidence(context)
        embed(context, pair, engine, summary)
        if not online:
            derive_coefficients(context, {method.grouping for method in methods if method.grouping is not None})
        merging = [method for method in methods if method.grouping is not None]
        missing = _missing_slices(context, merging, summary, online=online)
        record_run(context, "inferring")
        for method in methods:
            if method.grouping is None:
                _commit_plain_model(context, method, summary)
        _run(context, engine, missing, summary, online=online)
        totals = _record(context, methods)
        context.directory.update_record(state="inferred", ledger={STAGE: totals})
        summary.totals = totals
    return summary


def _choose_methods(manifest: Manifest, names: Sequence[str], *, online: bool) -> list[Method]:
    try:
        for name in names:
            check_method(name)
    except ValueError as error:
        raise ManifestError(f"--method: {error}") from error
    chosen = [METHODS[name] for name in dict.fromkeys(names or manifest.selected_methods)]
    if not online:
        return chosen
    plain = [method.name for method in chosen if method.grouping is None]
    if names and plain:
        raise ManifestError(f"--online: {', '.join(plain)} is read from evidence; leave out --online, or the method")
    return [method for method in chosen if method.grouping is not None]


def _require_evidence(context: RunContext) -> None:
    missing = missing_evidence(context)
    if missing:
        sets = ", ".join(sorted({item.evaluation_set for item in missing}))
        raise RunDirectoryError(
            f"{context.directory.root}: {len(missing)} parts have no evidence yet ({sets}); run `pipeline precompute`"
        )


def _commit_plain_model(context: RunContext, method: Method, summary: Summary) -> None:
    for item in context.manifest.evaluation_sets:
        archive = context.archive(item.name)
        for part in range(archive.parts):
            if commit_plain(context, item.name, archive, part, method):
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


def _missing_slices(context: RunContext, methods: list[Method], summary: Summary, *, online: bool) -> list[WorkItem]:
    """Slices without predictions, or whose plan was made again since; online, no plan is known yet."""
    missing = []
    for method in methods:
        variant = method_variant(method.name, context.manifest)
        for item in context.manifest.evaluation_sets:
            archive = context.archive(item.name)
            for window in context.windows(archive):
                wanted = slice_fingerprints(context, item.name, archive, window, method)
                rows = None if online else covered_rows(plan_path(context, item.name, window, method))
                for part, fingerprint in wanted.items():
                    path = context.directory.predictions(variant, item.name, part)
                    if part_state(path, fingerprint, rows=rows) is not PartState.COMMITTED:
                        missing.append(WorkItem(item.name, part, method.name))
                summary.skipped += len(wanted)
    summary.skipped -= len(missing)
    return missing


def _window_item(context: RunContext, item: WorkItem) -> WorkItem:
    archive = context.archive(item.evaluation_set)
    return WorkItem(item.evaluation_set, window_of(context, archive, item.part).index, item.method)


def _record(context: RunContext, methods: list[Method]) -> dict[str, object]:
    """Ledgers per method over all of its parts, those of earlier invocations too; a plain model's is empty."""
    directory = context.directory
    totals: dict[str, object] = {}
    if directory.record_path.exists():
        totals |= directory.read_record().get("ledger", {}).get(STAGE, {})
    for method in methods:
        variant = method_variant(method.name, context.manifest)
        directory.write_variant(directory.root / "predictions" / variant.folder, variant)
        merged = method.grouping is not None
        ledger = sum_ledgers(directory.root / "ledger", f"{STAGE}/{variant.folder}") if merged else Ledger()
        totals[variant.folder] = ledger.as_json()
    return totals
