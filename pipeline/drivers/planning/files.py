"""What the run's files take in bytes and in seconds: each kind is written by the normal writer, small and large."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import pyarrow as pa

from pipeline.archives.archive import Window
from pipeline.coefficients.evidence import Evidence
from pipeline.drivers.planning.batches import BatchPlans
from pipeline.drivers.planning.calibration import first_part
from pipeline.drivers.planning.sandbox import Sandbox
from pipeline.drivers.planning.subjects import Subject
from pipeline.stages.grid import grid_lambdas, grid_table
from pipeline.stages.plan import batches_of_slice, derive_samples
from pipeline.stages.precompute import STAGE
from pipeline.stages.scoring import PartLogits
from pipeline.stages.selection import Selected
from pipeline.stages.tables import REJECTS_SCHEMA, SAMPLE_COLUMNS, evidence_table, matrix_from_lists, predictions_table
from pipeline.store.files import write_json
from pipeline.store.fingerprints import Fingerprint
from pipeline.store.ledger import TOTALS, Ledger
from pipeline.store.tables import ROWS, write_table

REPETITIONS = 3
# Of logits that are imagined from measured ones, so that no two are equal: equal ones would be stored in less.
JITTER = 1e-3

TYPICAL_LEDGER = Ledger(
    totals=Counter(dict.fromkeys(TOTALS, 1024)),
    seconds=defaultdict(float, dict.fromkeys(("read", "merge and forward", "write"), 0.123456)),
)


@dataclass(frozen=True, slots=True)
class FileCost:
    """Bytes and seconds of a file: so much for any, and so much for each row."""

    bytes_fixed: float
    bytes_row: float
    seconds_fixed: float
    seconds_row: float

    def bytes(self, rows: int) -> float:
        """Size of a file of ``rows``."""
        return self.bytes_fixed + rows * self.bytes_row

    def seconds(self, rows: int) -> float:
        """Time to make and commit a file of ``rows``."""
        return self.seconds_fixed + rows * self.seconds_row


@dataclass(frozen=True, slots=True)
class SetFiles:
    """Files of evaluation sets with the same class names.

    ``samples`` are by rule, ``batches`` by rule and grouping, ``predictions`` (and ``grids``) by method; ``beside``,
    by stage one's name and by method, are the rejects and the ledger of a part.
    """

    evidence: FileCost
    samples: Mapping[str, FileCost]
    batches: Mapping[tuple[str, str], FileCost]
    predictions: Mapping[str, FileCost]
    grids: Mapping[str, FileCost]
    beside: Mapping[str, FileCost]


def measure_files(sandbox: Sandbox, plans: BatchPlans, subject: Subject, selected: Sequence[Selected]) -> SetFiles:
    """Write each kind of table for one part of ``subject``, with the run's own fingerprints, and look at the files."""
    return _Files(sandbox, plans, subject).measure(selected)


class _Files:
    """Measures the files of one evaluation set."""

    def __init__(self, sandbox: Sandbox, plans: BatchPlans, subject: Subject) -> None:
        self._context, self._plans, self._subject = sandbox.context, plans, subject
        self._archive = sandbox.archives[subject.name]
        self._path = sandbox.root / "files" / "part-00000.parquet"
        self._part = first_part(self._archive)
        rows = max(subject.images(part) for part in range(subject.archive.parts))
        first = plans.first[subject.name]
        self._evidence = _imagine_evidence(self._samples(rows), first, self._context.sources)

    def measure(self, selected: Sequence[Selected]) -> SetFiles:
        """All files."""
        context, name, archive, part = self._context, self._subject.name, self._archive, self._part
        measured = context.evidence_fingerprint(name, archive, part)
        samples, batches, predictions, grids, beside = {}, {}, {}, {}, {STAGE: self._beside(measured)}
        for item in selected:
            plan, fingerprint = None, self._fingerprint(item)
            if item.rule is not None and item.grouping is not None:
                plan, batches[item.rule.folder, item.grouping.folder] = self._batches(item)
                if not item.weighs_sources and item.rule.folder not in samples:
                    of_samples = context.samples_fingerprint(name, archive, part, item)
                    derive = partial(derive_samples, context, item)
                    samples[item.rule.folder] = self._cost(self._evidence, of_samples, derive)
            predictions[item.key] = self._cost(_predicted(self._evidence, plan), fingerprint)
            beside[item.key] = self._beside(fingerprint)
            if item.method.combination == "grid":
                grids[item.key] = self._cost(_grid(self._evidence, len(grid_lambdas(item)) - 2), fingerprint)
        return SetFiles(self._cost(self._evidence, measured), samples, batches, predictions, grids, beside)

    def _fingerprint(self, item: Selected) -> Fingerprint:
        """What a method's predictions depend on; of a window, its first written part stands for all."""
        context, name = self._context, self._subject.name
        if item.grouping is None:
            return context.part_fingerprint(name, self._archive, self._part, item)
        return context.predictions_fingerprint(self._batches_fingerprint(item), self._part, item)

    def _batches_fingerprint(self, item: Selected) -> Fingerprint:
        window = Window(0, self._part, 1)
        return self._context.batches_fingerprint(self._subject.name, self._archive, window, item)

    def _batches(self, item: Selected) -> tuple[pa.Table, FileCost]:
        """Batches of the first slice, and what the plan of the first window takes, by its images."""
        window = self._context.windows(self._subject.archive)[0]
        fingerprint = self._batches_fingerprint(item)
        # Once before the clock runs, so that λ is known and grouping alone is timed.
        plan = self._plans.batches(self._subject, window, item)
        images = int(plan["size"].to_numpy().sum())
        small = self._written(lambda: plan.slice(0, 1), fingerprint)
        large = self._written(lambda: self._plans.batches(self._subject, window, item), fingerprint)
        first = batches_of_slice(plan, window, self._archive.part_rows, window.first_part)
        return first, _line(small, large, 0, images)

    def _cost(
        self, table: pa.Table, fingerprint: Fingerprint, make: Callable[[pa.Table], pa.Table] | None = None
    ) -> FileCost:
        """Of a file that holds ``table``, or what ``make`` makes of it, by its rows."""
        few = len(table) // 8
        made = make or (lambda given: given)
        small = self._written(lambda: made(table.slice(0, few)), fingerprint)
        return _line(small, self._written(lambda: made(table), fingerprint), few, len(table))

    def _written(self, make: Callable[[], pa.Table], fingerprint: Fingerprint) -> tuple[float, float]:
        """Bytes and seconds of a file."""
        seconds = []
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            write_table(self._path, make(), fingerprint, {ROWS: fingerprint.digest})
            seconds.append(time.perf_counter() - start)
        return self._path.stat().st_size, median(seconds)

    def _beside(self, fingerprint: Fingerprint) -> FileCost:
        size, seconds = self._written(REJECTS_SCHEMA.empty_table, fingerprint)
        ledger, start = self._path.with_suffix(".json"), time.perf_counter()
        write_json(ledger, TYPICAL_LEDGER.as_json())
        return FileCost(size + ledger.stat().st_size, 0.0, seconds + time.perf_counter() - start, 0.0)

    def _samples(self, rows: int) -> pa.Table:
        """Samples of one part; where none is written, those of the first images again, numbered on."""
        if self._subject.written:
            part = max(self._subject.written, key=self._subject.images)
            return _extended(self._subject.archive.samples(part).select(SAMPLE_COLUMNS), rows)
        return _extended(self._archive.samples(first_part(self._archive)).select(SAMPLE_COLUMNS), rows)


def _extended(samples: pa.Table, rows: int) -> pa.Table:
    known = len(samples)
    table = samples.take(pa.array(np.arange(rows) % known)).set_column(0, "row", pa.array(np.arange(rows)))
    ids = table["sample_id"].to_pylist()
    numbered = [name if index < known else f"{name[: -len(str(index))]}{index}" for index, name in enumerate(ids)]
    return table.set_column(table.column_names.index("sample_id"), "sample_id", pa.array(numbered, pa.string()))


def _imagine_evidence(samples: pa.Table, first: pa.Table, sources: Sequence[str]) -> pa.Table:
    """Evidence of ``samples``, with logits near measured ones."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(first), size=len(samples))
    logits = {}
    for name in sources:
        known = matrix_from_lists(first[f"logits_{name}"])[drawn]
        logits[name] = (known + JITTER * generator.standard_normal(known.shape)).astype(np.float32)
    return evidence_table(samples, Evidence.from_logits(logits))


def _predicted(evidence: pa.Table, batches: pa.Table | None) -> pa.Table:
    """Predictions of a part or slice, in batches where there are any."""
    rows, batch, lam = evidence["row"].to_numpy(), None, np.zeros(len(evidence), np.float32)
    if batches is not None:
        sizes, rows = batches["size"].to_numpy(), batches["rows"].combine_chunks().flatten().to_numpy()
        order = np.argsort(rows)[: len(evidence)]
        rows, batch = rows[order], np.repeat(batches["batch"].to_numpy(), sizes)[order]
        lam = np.repeat(batches["lambda"].fill_null(np.nan).to_numpy().astype(np.float32), sizes)[order]
    own = evidence.slice(0, len(rows)).set_column(0, "row", pa.array(rows))
    logits = matrix_from_lists(own[next(name for name in own.column_names if name.startswith("logits_"))])
    names = [str(label) for label in range(logits.shape[1])]
    return predictions_table(own, batch=batch, lam=lam[: len(own)], logits=logits, class_names=names)


def _grid(evidence: pa.Table, models: int) -> pa.Table:
    logits = matrix_from_lists(evidence["logits_generalist"])
    noise = JITTER * np.random.default_rng(0).standard_normal((models, *logits.shape))
    return grid_table(PartLogits(evidence, (logits + noise).astype(np.float32), REJECTS_SCHEMA.empty_table()))


def _line(small: tuple[float, float], large: tuple[float, float], few: int, rows: int) -> FileCost:
    """Cost through two files; a machine's noise makes neither share of the time negative."""
    size_row = (large[0] - small[0]) / max(rows - few, 1)
    seconds_row = max(large[1] - small[1], 0.0) / max(rows - few, 1)
    return FileCost(max(small[0] - few * size_row, 0.0), size_row, max(small[1] - few * seconds_row, 0.0), seconds_row)
