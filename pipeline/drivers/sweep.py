"""``pipeline sweep``: many settings on the evidence of a finished run; equal batch plans are scored once."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.archives.archive import Archive, Window
from pipeline.drivers.grids import Grid
from pipeline.drivers.infer import require_evidence
from pipeline.drivers.opening import open_run
from pipeline.drivers.precompute import accepted_images, derive_coefficients, embed
from pipeline.drivers.summary import Summary, sum_ledgers
from pipeline.engines.engine import Engine, Job
from pipeline.errors import RunDirectoryError
from pipeline.manifest.schema import Manifest
from pipeline.manifest.section import SET_NAME
from pipeline.progress import sample_progress
from pipeline.stages.context import RunContext
from pipeline.stages.copies import commit_copy
from pipeline.stages.infer import STAGE, MakeInferWorker, committed_slices, plan_digest
from pipeline.stages.plan import covered_rows, plan_path
from pipeline.stages.selection import Selected
from pipeline.stages.work import Report, WorkItem
from pipeline.store.files import write_json
from pipeline.store.fingerprints import digest_json
from pipeline.store.lease import hold_lease
from pipeline.store.run_directory import RunDirectory

NAME = "sweep"
# Small files made durable one by one wait for the disk most of the time: more of them wait at once.
WRITERS = 8


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep that is done: its name in the run, what this invocation did, and how many slices it copied."""

    name: str
    summary: Summary
    copied: int

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"name": self.name, **self.summary.as_json(), "copied": self.copied}

    def text(self) -> str:
        """One paragraph for people."""
        copied = f"  {self.copied:,} parts copied from equal batch plans"
        return "\n".join([self.summary.text(), *([copied] if self.copied else [])])


@dataclass(frozen=True, slots=True)
class _Copy:
    """A slice that lacks predictions which ``source`` has, or will have when all items are done."""

    evaluation_set: str
    archive: Archive
    window: Window
    part: int
    source: Selected
    selected: Selected


def sweep(
    manifest: Manifest,
    grid: Grid,
    methods: Sequence[Selected],
    engine: Engine,
    *,
    name: str | None = None,
    allow_code: bool = False,
) -> Swept:
    """Commit the predictions of ``methods``, the settings of ``grid``, from the evidence of a run.

    Only stage two runs: per evaluation set, each distinct batch plan is scored once, by one job for all of them, and
    settings that share it get copies. What is committed stays as it is, so a sweep can be interrupted and repeated.
    ``name`` is by default a digest of the grid. The run's record lists the sweep, which keeps its predictions out of
    the run's own tables; ``RUN/sweeps/<name>.json`` says which setting and plan stands behind each.

    Raises :class:`RunDirectoryError` when evidence is incomplete or ``name`` belongs to another grid.
    """
    name = _checked_name(manifest, grid, name)
    with hold_lease(Path(manifest.output)):
        context, models = open_run(manifest, engine, methods, allow_code=allow_code)
        require_evidence(context)
        summary = Summary(NAME, manifest.output)
        _record(context, name, grid, methods)
        embed(context, models, engine, summary)
        _derive(context, methods)
        plans = {
            item.name: {selected.key: plan_digest(context, item.name, archive, selected) for selected in methods}
            for item in manifest.evaluation_sets
            for archive in [context.archive(item.name)]
        }
        _spell_out(context, name, grid, methods, plans)
        items, copies = _divide(context, methods, plans, summary)
        _run(context, engine, items, summary)
        _commit_copies(context, copies)
        summary.totals = _total(context, name, methods)
    return Swept(name, summary, len(copies))


def manifest_of(run: Path) -> Manifest:
    """The manifest that ``run.json`` keeps, with the run where it lies now and no methods but its default ones.

    :class:`RunDirectoryError` when there is no run, or its manifest is not one that this version reads.
    """
    record = RunDirectory(run).read_record()
    try:
        # The record names methods without their settings, and a user's rule not as a manifest does.
        return Manifest.model_validate({**record["manifest"], "output": str(run.resolve()), "methods": None})
    except (KeyError, TypeError) as error:
        raise RunDirectoryError(f"{run}: run.json holds no manifest; run `pipeline precompute` again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunDirectoryError(
            f"{run}: run.json holds a manifest that this version does not read ({where}: {first['msg']}); "
            "run `pipeline precompute` again"
        ) from None


def _checked_name(manifest: Manifest, grid: Grid, name: str | None) -> str:
    own = digest_json(grid.as_json())[:8] if name is None else name
    if not SET_NAME.fullmatch(own):
        raise RunDirectoryError(f"--name {own!r}: must be letters, digits, '.', '_' or '-': it names files")
    for sweep in _recorded(RunDirectory(Path(manifest.output))):
        if sweep["name"] == own and sweep["grid"] != grid.as_json():
            raise RunDirectoryError(f"{manifest.output}: sweep {own!r} has other settings; give another --name")
    return own


def _recorded(directory: RunDirectory) -> list[dict[str, Any]]:
    sweeps: list[dict[str, Any]] = directory.read_record().get("sweeps", [])
    return sweeps


def _record(context: RunContext, name: str, grid: Grid, methods: Sequence[Selected]) -> None:
    """List the sweep in ``run.json`` before it writes anything: whatever becomes of it, its folders are known as such.

    ``coefficients`` are the rules at settings that no other work of this run has led to before.
    """
    directory = context.directory
    earlier = _recorded(directory)
    swept = {folder for sweep in earlier for folder in sweep["coefficients"]}
    folders = dict.fromkeys(selected.rule.folder for selected in methods if selected.rule is not None)
    entry = {
        "name": name,
        "grid": grid.as_json(),
        "keys": [selected.key for selected in methods],
        "coefficients": [
            folder for folder in folders if folder in swept or not (directory.root / "coefficients" / folder).exists()
        ],
    }
    directory.update_record(sweeps=[*(sweep for sweep in earlier if sweep["name"] != name), entry])


def _spell_out(
    context: RunContext, name: str, grid: Grid, methods: Sequence[Selected], plans: Mapping[str, Mapping[str, str]]
) -> None:
    """Write each setting's folder and plans to ``RUN/sweeps/<name>.json``, and its settings beside its predictions."""
    directory = context.directory
    for selected in methods:
        directory.write_variant(directory.root / "predictions" / selected.key, selected.variant)
    settings = [
        {
            "key": selected.key,
            "method": selected.method.name,
            "rule": selected.method.rule,
            "grouping": selected.method.grouping,
            "settings": {**selected.settings, **(selected.rule.settings if selected.rule else {})},
            "plans": {evaluation_set: digests[selected.key] for evaluation_set, digests in plans.items()},
        }
        for selected in methods
    ]
    write_json(directory.sweep(name, ".json"), {"name": name, "given": list(grid.values), "settings": settings})


def _derive(context: RunContext, methods: Sequence[Selected]) -> None:
    """λ and batch plans of all settings, several rules at a time; a user's own rule is not asked to bear that."""
    by_rule: dict[str, list[Selected]] = {}
    for selected in methods:
        by_rule.setdefault(selected.rule.folder if selected.rule else "", []).append(selected)
    with ThreadPoolExecutor(1 if context.user_rules else WRITERS) as pool:
        list(pool.map(lambda alike: derive_coefficients(context, alike), by_rule.values()))


def _commit_copies(context: RunContext, copies: Sequence[_Copy]) -> None:
    def commit(copy: _Copy) -> None:
        commit_copy(context, copy.evaluation_set, copy.archive, copy.window, copy.part, copy.source, copy.selected)

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(commit, copies))


def _divide(
    context: RunContext, methods: Sequence[Selected], plans: Mapping[str, Mapping[str, str]], summary: Summary
) -> tuple[list[WorkItem], list[_Copy]]:
    """Slices to score, one of each plan unless a setting has it, and slices to copy from those or committed ones."""
    items, copies = [], []
    for item in context.manifest.evaluation_sets:
        archive = context.archive(item.name)
        for alike in _classes(methods, plans[item.name]):
            for window in context.windows(archive):
                done = {selected.key: _committed(context, item.name, archive, window, selected) for selected in alike}
                for part in window.part_numbers:
                    having = [selected for selected in alike if part in done[selected.key]]
                    source = having[0] if having else alike[0]
                    if not having:
                        items.append(WorkItem(item.name, part, source.key))
                    lacking = [selected for selected in alike if part not in done[selected.key] and selected != source]
                    copies += [_Copy(item.name, archive, window, part, source, selected) for selected in lacking]
                    summary.skipped += len(having)
    return items, copies


def _classes(methods: Iterable[Selected], digests: Mapping[str, str]) -> list[list[Selected]]:
    """Methods of equal plans together, in the order of the grid."""
    classes: dict[str, list[Selected]] = {}
    for selected in methods:
        classes.setdefault(digests[selected.key], []).append(selected)
    return list(classes.values())


def _committed(context: RunContext, name: str, archive: Archive, window: Window, selected: Selected) -> frozenset[int]:
    """Parts of a window for which a method's predictions are there, made from its plan as it is now."""
    rows = covered_rows(plan_path(context, name, window, selected))
    return committed_slices(context, name, archive, window, selected, rows)


def _run(context: RunContext, engine: Engine, items: list[WorkItem], summary: Summary) -> None:
    total = sum(accepted_images(context, items).values())
    with sample_progress(NAME, total) as progress:

        def on_report(report: Report) -> None:
            summary.count(report)
            progress.advance(report.samples)

        engine.run(Job(STAGE, items, MakeInferWorker(context), scores=True), on_report)


def _total(context: RunContext, name: str, methods: Sequence[Selected]) -> dict[str, Any]:
    """Ledger of all slices of the sweep, those of earlier invocations too; kept in ``run.json`` beside the stages'."""
    directory = context.directory
    stages = [f"{STAGE}/{selected.key}" for selected in methods]
    totals = sum_ledgers(directory.root / "ledger", *stages).as_json()
    earlier = directory.read_record().get("ledger", {}).get(NAME, {})
    directory.update_record(ledger={NAME: {**earlier, name: totals}})
    return totals
