"""``pipeline plan``: what a run will cost, from a minute's calibration on its first images; the run is left as it is.

:func:`plan` returns, for ``--json``::

    manifest, run       name, and the run directory
    device, precision, tile, threads        as the manifest has them; prices hold for these
    workers             [n]: the numbers of workers that times are given for
    images              of all evaluation sets; listed ones where nothing is ingested yet
    counts_exact        all evidence is cached, so that batches and merges are those of the run
    calibration         images scored by set, and seconds per operation: load, read (block, row, decode), sources (a
                        tile through every source), merge (by ends), merged and per_sample (a call and a tile, by tile),
                        text (by set), ingest (by set: decode, store, bytes of an image)
    stages              [{stage, method, parallel, left, total}]; left is what is not committed yet. Each of both has
                        parts, images, image_forward_calls, image_forward_images, batches, merges, text_forward_calls,
                        text_forward_images, seconds_by {reading, device, writing}, bottleneck, and times by workers:
                        {seconds, workers (at work), device_hours}: GPU-hours, on a CPU core-hours (workers, threads)
    times               {left, total} by workers: seconds and device_hours of all stages, one after another
    storage             [{what, left, total}] in bytes
    memory              bytes of one worker: process, models, activations, pixels, total
    gpu_memory          bytes on its GPU: models, activations; null on a CPU
    tolerance           [{rule, tolerance, batches, merges, size_min, size_median, size_max, reached, seconds,
                        ratio_to_batch, ratio_to_sample}]; seconds on one worker, without writing
    notes               what to know about these figures, a sentence each
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.drivers.opening import make_context, open_models, require_evaluation_sets, require_labels, require_models
from pipeline.drivers.planning.batches import BatchPlans
from pipeline.drivers.planning.calibration import Calibration
from pipeline.drivers.planning.files import SetFiles, measure_files
from pipeline.drivers.planning.heads import measure_heads, measure_static
from pipeline.drivers.planning.sandbox import Sandbox, open_sandbox
from pipeline.drivers.planning.stages import Pricing
from pipeline.drivers.planning.storage import storage_rows, worker_memory
from pipeline.drivers.planning.subjects import Subject, open_subjects
from pipeline.drivers.planning.summary import describe_prices, plan_notes, total_times
from pipeline.drivers.planning.tolerance import Compared, compared_methods, tolerance_table
from pipeline.drivers.planning.work import Costs, RunPlan
from pipeline.drivers.precompute import planned_methods
from pipeline.engines.local import LocalEngine
from pipeline.errors import ArchiveError, ManifestError
from pipeline.manifest.schema import Manifest
from pipeline.memory import return_large_blocks
from pipeline.models.numeric_kind import choose_device
from pipeline.models.sources import SourceModels
from pipeline.progress import phase_progress
from pipeline.stages.context import RunContext
from pipeline.stages.peak_memory import resident_bytes
from pipeline.stages.scoring_worker import make_scorer
from pipeline.stages.selection import Selected, require_code_allowed, select_methods

TOLERANCES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25)
# Of the calibration's time, what ingesting first images may take where that is needed.
INGEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class _Asked:
    """Methods to infer, those whose λ is derived besides, and those that tolerances are compared for."""

    inferred: Sequence[Selected]
    derived: Sequence[Selected]
    compared: Sequence[Compared]

    @property
    def all(self) -> list[Selected]:
        extra = [item for rule in self.compared for item in rule.methods]
        return list({item.key: item for item in [*self.inferred, *self.derived, *extra]}.values())


def plan(
    manifest: Manifest,
    *,
    workers: Sequence[int] = (),
    seconds: float = 60.0,
    names: Sequence[str] = (),
    tolerances: Sequence[float] = TOLERANCES,
    allow_code: bool = False,
) -> dict[str, Any]:
    """What ``names`` (by default the manifest's methods) and all that comes before them cost; see the module.

    Raises what precompute and infer would raise before they start, but for archives that are still to be made.
    """
    process = resident_bytes()
    return_large_blocks()
    asked = _ask(manifest, names, tolerances, allow_code=allow_code)
    columns = list(dict.fromkeys(workers)) or [manifest.compute.workers]
    with phase_progress("plan") as report:
        report("loading models")
        start = time.perf_counter()
        models = open_models(manifest)
        opening = time.perf_counter() - start
        subjects = open_subjects(manifest, models)
        context = _context(manifest, models, subjects, asked)
        BatchPlans(context, {}).require_fresh(subjects)
        with open_sandbox(context, subjects, INGEST_SHARE * seconds, report) as sandbox:
            budget = seconds * (1.0 - INGEST_SHARE) if sandbox.ingest else seconds
            planned, memory, gpu_memory = _calibrate(sandbox, context, models, subjects, asked, opening, budget, report)
            report("counting")
            stages = planned.stages()
            tolerance = [
                row
                for rule in asked.compared
                for row in tolerance_table(context, planned.plans, subjects, planned.pricing, rule)
            ]
    compute = manifest.compute
    on_gpu = choose_device(compute.device).type == "cuda"
    described = [stage.as_json(columns, 1 if on_gpu else compute.threads) for stage in stages]
    memory = {"process": process, **memory}
    return {
        "manifest": manifest.name,
        "run": manifest.output,
        "device": context.kind["device"],
        "precision": manifest.precision,
        "tile": compute.tile,
        "threads": compute.threads,
        "workers": columns,
        "images": sum(subject.total() for subject in subjects),
        "counts_exact": planned.plans.is_known(subjects),
        "calibration": describe_prices(planned),
        "stages": described,
        "times": total_times(described, columns),
        "storage": storage_rows(planned),
        "memory": {**memory, "total": sum(memory.values())},
        "gpu_memory": gpu_memory,
        "tolerance": tolerance,
        "notes": plan_notes(planned, described, columns, sum(memory.values()), on_gpu=on_gpu),
    }


def read_tolerances(text: str | None) -> Sequence[float]:
    """Tolerances from ``0,0.01,...``, ascending; the default ones for None. ManifestError for what is none."""
    if text is None:
        return TOLERANCES
    try:
        values = sorted({float(value) for value in text.split(",")})
    except ValueError:
        values = [math.nan]
    if not all(0 <= value <= 1 for value in values):
        raise ManifestError(f"--tolerance {text!r}: must be numbers from 0 to 1, such as 0,0.01,0.05")
    return values


def _ask(manifest: Manifest, names: Sequence[str], tolerances: Sequence[float], *, allow_code: bool) -> _Asked:
    require_evaluation_sets(manifest)
    inferred, planned = select_methods(manifest, names), planned_methods(manifest)
    asked = _Asked(inferred, [*planned, *inferred], compared_methods(manifest, inferred, tolerances))
    require_code_allowed(asked.all, allowed=allow_code)
    require_models(manifest, asked.all)
    return asked


def _context(manifest: Manifest, models: SourceModels, subjects: Sequence[Subject], asked: _Asked) -> RunContext:
    require_labels(asked.inferred, {item.name: item.archive for item in subjects if not item.unwritten})
    archives = {subject.name: subject.archive for subject in subjects}
    return make_context(manifest, LocalEngine(manifest), models, archives, asked.all)


def _calibrate(
    sandbox: Sandbox,
    context: RunContext,
    models: SourceModels,
    subjects: Sequence[Subject],
    asked: _Asked,
    opening: float,
    seconds: float,
    report: Callable[[str], None],
) -> tuple[RunPlan, dict[str, int], dict[str, int] | None]:
    """All prices, and what a worker and its GPU hold in memory."""
    if unread := [subject.name for subject in subjects if subject.name not in sandbox.representatives]:
        raise ArchiveError(f"{', '.join(unread)}: none of the first images can be used; nothing can be measured")
    device = choose_device(context.manifest.compute.device)
    start = time.perf_counter()
    scorer = make_scorer(context.manifest, models, device)
    laid_out = time.perf_counter() - start
    heads = measure_heads(sandbox, models, device, report)
    exact = frozenset(name for name, price in heads.items() if price.exact)
    calibration = Calibration(
        context=context,
        scorer=scorer,
        device=device,
        archives=sandbox.archives,
        heads={name: heads[name].heads for name in sandbox.archives},
        exact_heads=exact,
        seconds=seconds,
        report=report,
    )
    prices = calibration.measure(asked.all)
    static = {
        item.key: measure_static(sandbox, models, item, device, report)
        for item in asked.inferred
        if item.method.combination == "static"
    }
    plans = BatchPlans(context, calibration.evidence_of(subject.name for subject in subjects))
    files = _files(sandbox, plans, subjects, asked, report)
    pricing = Pricing(
        device=prices,
        text={name: price.per_call for name, price in heads.items()},
        prompts={name: price.prompts for name, price in heads.items()},
        exact_heads=exact,
        mergeable=scorer.segment.bytes_per_merge() > 0,
        merge_ahead=scorer.merge_ahead,
    )
    costs = Costs(opening, laid_out, heads, static, files, sandbox.ingest)
    planned = RunPlan(context, plans, subjects, asked.inferred, asked.derived, pricing, costs)
    return planned, *worker_memory(planned, models, scorer, on_gpu=device.type == "cuda")


def _files(
    sandbox: Sandbox,
    plans: BatchPlans,
    subjects: Sequence[Subject],
    asked: _Asked,
    report: Callable[[str], None],
) -> Mapping[str, SetFiles]:
    report("writing tables")
    by_name = {subject.name: subject for subject in subjects}
    methods = list({item.key: item for item in [*asked.derived, *asked.inferred]}.values())
    measured = {
        first: measure_files(sandbox, plans, by_name[first], methods)
        for first in dict.fromkeys(sandbox.representatives.values())
    }
    return {name: measured[first] for name, first in sandbox.representatives.items()}
