"""``pipeline precompute``: evidence for every archive part, and from it λ per sample and per batch."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.drivers.opening import open_run, record_run
from pipeline.drivers.summary import Summary, sum_ledgers
from pipeline.engines.engine import Engine, Job
from pipeline.engines.local import LocalEngine
from pipeline.manifest.schema import Manifest
from pipeline.models.numeric_kind import choose_device
from pipeline.models.sources import SourceModels
from pipeline.progress import sample_progress
from pipeline.stages.context import RunContext
from pipeline.stages.embed import MakeEmbedWorker
from pipeline.stages.heads import STAGE as EMBED
from pipeline.stages.heads import ensure_embeddings
from pipeline.stages.plan import commit_batches, commit_samples
from pipeline.stages.precompute import STAGE, MakePrecomputeWorker
from pipeline.stages.selection import Selected, own_method, select_methods
from pipeline.stages.static import ensure_merged
from pipeline.stages.work import Report, WorkItem
from pipeline.store.lease import hold_lease
from pipeline.store.tables import PartState, part_state


def precompute(manifest: Manifest, engine: Engine, *, allow_code: bool = False) -> Summary:
    """Run every source model once over the archives; parts with evidence stay, and λ is derived without a forward.

    Raises :class:`~pipeline.errors.StaleCacheError` naming what changed when cached evidence was made from other
    weights, prompts, class names or images.
    """
    with hold_lease(Path(manifest.output)):
        selected = planned_methods(manifest)
        context, models = open_run(manifest, engine, selected, allow_code=allow_code)
        summary = Summary(STAGE, manifest.output)
        items = missing_evidence(context)
        total = sum(context.archive(item.name).parts for item in manifest.evaluation_sets)
        summary.skipped = total - len(items)
        embed(context, models, engine, summary)
        record_run(context, "precomputing")
        sizes = accepted_images(context, items)
        with sample_progress(STAGE, sum(sizes.values())) as progress:

            def on_report(report: Report) -> None:
                summary.count(report)
                progress.advance(sizes[report.item])

            engine.run(Job(STAGE, items, MakePrecomputeWorker(context), scores=True), on_report)
        derive_coefficients(context, selected)
        totals = sum_ledgers(context.directory.root / "ledger", STAGE, EMBED).as_json()
        context.directory.update_record(state="precomputed", ledger={STAGE: totals})
        summary.totals = totals
    return summary


def missing_evidence(context: RunContext) -> list[WorkItem]:
    """Parts without evidence, over all evaluation sets; a torn file counts as missing, a stale one is refused."""
    missing = []
    for item in context.manifest.evaluation_sets:
        archive = context.archive(item.name)
        for part in range(archive.parts):
            path = context.directory.evidence(item.name, part)
            state = part_state(path, context.evidence_fingerprint(item.name, archive, part))
            if state is not PartState.COMMITTED:
                missing.append(WorkItem(item.name, part))
    return missing


def accepted_images(context: RunContext, items: Sequence[WorkItem]) -> dict[WorkItem, int]:
    """How many images each item's archive part holds."""
    archives = {item.name: context.archive(item.name) for item in context.manifest.evaluation_sets}
    return {item: archives[item.evaluation_set].accepted(item.part) for item in items}


def embed(
    context: RunContext, models: SourceModels, engine: Engine, summary: Summary, static: Sequence[Selected] = ()
) -> None:
    """Heads of all sets and ``static`` merges that are not there yet, here or by a worker of the run's kind.

    A GPU belongs to the engine's workers: here it is used only if they are this process.
    """
    names = [item.name for item in context.manifest.evaluation_sets]
    is_for_here = isinstance(engine, LocalEngine) or context.kind["device"] == "cpu"
    if is_for_here and LocalEngine(context.manifest).numeric_kind_or_none() == context.kind:
        device = choose_device(context.manifest.compute.device)
        for name in names:
            summary.ledger.add(ensure_embeddings(context, name, models, device))
        for item in static:
            summary.ledger.add(ensure_merged(context, models, item, device))
        return
    items = [WorkItem(name, 0) for name in names] + [WorkItem(names[0], 0, item.key) for item in static]
    engine.run(
        Job(EMBED, items, MakeEmbedWorker(context), scores=True), lambda report: summary.ledger.add(report.ledger)
    )


def derive_coefficients(context: RunContext, methods: Sequence[Selected]) -> None:
    """λ per sample and batch plans of the given methods, where they are not there yet: no forward pass."""
    directory = context.directory
    for item in context.manifest.evaluation_sets:
        archive = context.archive(item.name)
        for selected in methods:
            if selected.rule is None or selected.grouping is None:
                continue
            if not selected.weighs_sources:
                for part in range(archive.parts):
                    commit_samples(context, item.name, archive, part, selected)
            for window in context.windows(archive):
                commit_batches(context, item.name, archive, window, selected)
            directory.write_variant(directory.root / "coefficients" / selected.rule.folder, selected.rule)
            batches = directory.batches(selected.rule, selected.grouping, item.name, 0).parent
            directory.write_variant(batches, selected.grouping)


def planned_methods(manifest: Manifest) -> list[Selected]:
    """The manifest's methods, and for a pair its own rule and grouping."""
    selected = select_methods(manifest)
    own = [own_method(manifest)] if manifest.is_pair else []
    return [*selected, *(item for item in own if item.key not in {known.key for known in selected})]
