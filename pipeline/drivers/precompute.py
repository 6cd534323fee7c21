"""``pipeline precompute``: evidence for every archive part, and from it λ per sample and per batch."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.drivers.opening import open_run, record_run
from pipeline.drivers.summary import Summary, sum_ledgers
from pipeline.engines.engine import Engine, Job
from pipeline.engines.local import LocalEngine
from pipeline.manifest.schema import Manifest
from pipeline.methods import METHODS, GroupingKind
from pipeline.models.numeric_kind import choose_device
from pipeline.models.pair import Pair
from pipeline.progress import sample_progress
from pipeline.stages.context import RunContext
from pipeline.stages.embed import MakeEmbedWorker
from pipeline.stages.heads import STAGE as EMBED
from pipeline.stages.heads import ensure_embeddings
from pipeline.stages.plan import commit_batches, commit_samples
from pipeline.stages.precompute import STAGE, MakePrecomputeWorker
from pipeline.stages.variants import grouping_variant, rule_variant
from pipeline.stages.work import Report, WorkItem
from pipeline.store.lease import hold_lease
from pipeline.store.tables import PartState, part_state


def precompute(manifest: Manifest, engine: Engine) -> Summary:
    """Run both models once over the archives; parts with evidence are left alone, and λ is derived without a forward.

    Raises :class:`~pipeline.errors.StaleCacheError` naming what changed when cached evidence was made from other
    weights, prompts, class names or images.
    """
    with hold_lease(Path(manifest.output)):
        context, pair = open_run(manifest, engine)
        summary = Summary(STAGE, manifest.output)
        items = missing_evidence(context)
        total = sum(context.archive(item.name).parts for item in manifest.evaluation_sets)
        summary.skipped = total - len(items)
        embed(context, pair, engine, summary)
        record_run(context, "precomputing")
        sizes = accepted_images(context, items)
        with sample_progress(STAGE, sum(sizes.values())) as progress:

            def on_report(report: Report) -> None:
                summary.count(report)
                progress.advance(sizes[report.item])

            engine.run(Job(STAGE, items, MakePrecomputeWorker(context), scores=True), on_report)
        derive_coefficients(context, wanted_groupings(manifest))
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


def embed(context: RunContext, pair: Pair, engine: Engine, summary: Summary) -> None:
    """Class embeddings of all sets that lack them: here, or by a worker where this process is of another kind."""
    if LocalEngine(context.manifest).numeric_kind_or_none() == context.kind:
        device = choose_device(context.manifest.compute.device)
        for item in context.manifest.evaluation_sets:
            summary.ledger.add(ensure_embeddings(context, item.name, pair, device))
        return
    items = [WorkItem(item.name, 0) for item in context.manifest.evaluation_sets]
    engine.run(
        Job(EMBED, items, MakeEmbedWorker(context), scores=True), lambda report: summary.ledger.add(report.ledger)
    )


def derive_coefficients(context: RunContext, kinds: set[GroupingKind]) -> None:
    """λ per sample and batch plans of the given kinds, where they are not there yet: no forward pass."""
    directory = context.directory
    rule = rule_variant(context.manifest.coefficient)
    for item in context.manifest.evaluation_sets:
        archive = context.archive(item.name)
        for part in range(archive.parts):
            commit_samples(context, item.name, archive, part)
        directory.write_variant(directory.root / "coefficients" / rule.folder, rule)
        for kind in sorted(kinds):
            grouping = grouping_variant(kind, context.manifest.grouping)
            for window in context.windows(archive):
                commit_batches(context, item.name, archive, window, kind)
            directory.write_variant(directory.batches(rule, grouping, item.name, 0).parent, grouping)


def wanted_groupings(manifest: Manifest) -> set[GroupingKind]:
    """The manifest's own grouping, and those of its methods."""
    kinds = {METHODS[name].grouping for name in manifest.selected_methods}
    return {manifest.grouping.kind} | {kind for kind in kinds if kind is not None}
