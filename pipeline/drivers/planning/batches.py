"""The batches that a run will have: by cached evidence where it is there, else by what the first images gave."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.archives.archive import Window
from pipeline.drivers.planning.subjects import Subject
from pipeline.stages.context import RunContext
from pipeline.stages.plan import derive_batches, derive_samples
from pipeline.stages.selection import Selected
from pipeline.store.tables import PartState, part_state, read_metadata, read_table

# λ lies in clusters (Eq. 11 moves it by ±δ) and nothing lies between them: imagined λ do not either.
WIDEST_GAP = 0.05


@dataclass(slots=True)
class BatchPlans:
    """λ and batch plans of every window.

    ``first`` is the evidence that the first images of each set gave, as a table; where evidence is not cached, it
    stands for all the set's images.
    """

    context: RunContext
    first: Mapping[str, pa.Table]
    _committed: dict[str, frozenset[int]] = field(default_factory=dict)
    _lambdas: dict[tuple[str, str, int], pa.Table] = field(default_factory=dict)
    _of_method: str = ""
    _batches: dict[tuple[str, int], pa.Table] = field(default_factory=dict)

    def committed(self, subject: Subject) -> frozenset[int]:
        """Parts whose evidence is there; ``StaleCacheError`` where it was made from other inputs."""
        if subject.name not in self._committed:
            path_of, fingerprint_of = self.context.directory.evidence, self.context.evidence_fingerprint
            self._committed[subject.name] = frozenset(
                part
                for part in subject.written
                if part_state(path_of(subject.name, part), fingerprint_of(subject.name, subject.archive, part))
                is PartState.COMMITTED
            )
        return self._committed[subject.name]

    def require_fresh(self, subjects: Sequence[Subject]) -> None:
        """``StaleCacheError`` where any evidence was made from other inputs."""
        for subject in subjects:
            self.committed(subject)

    def images(self, subject: Subject, part: int) -> int:
        """Images of a part that stage two will see: those with evidence, where that is there."""
        if part not in self.committed(subject):
            return subject.images(part)
        metadata = read_metadata(self.context.directory.evidence(subject.name, part))
        assert metadata is not None
        return metadata.rows

    def is_known(self, subjects: Sequence[Subject]) -> bool:
        """Whether all evidence is cached, so that batches are those of the run."""
        return all(len(self.committed(subject)) == subject.archive.parts for subject in subjects)

    def batches(self, subject: Subject, window: Window, selected: Selected) -> pa.Table:
        """Batch plan of one window; those of the method asked for last are kept."""
        if self._of_method != selected.key:
            self._of_method, self._batches = selected.key, {}
        key = (subject.name, window.index)
        if key not in self._batches:
            self._batches[key] = self._derive_batches(subject, window, selected)
        return self._batches[key]

    def _derive_batches(self, subject: Subject, window: Window, selected: Selected) -> pa.Table:
        samples = [self._samples(subject, part, selected) for part in window.part_numbers]
        if subject.unwritten.intersection(window.part_numbers) and "order" in selected.settings:
            # A stream is drawn from labels, which are not known yet; its batches have the sizes of those that arrive.
            selected = replace(selected, settings={**selected.settings, "order": "arrival"})
        table = pa.concat_tables(samples, promote_options="default")
        return derive_batches(self.context, subject.archive, window, selected, table)

    def _samples(self, subject: Subject, part: int, selected: Selected) -> pa.Table:
        """Rows and λ of a part, or its evidence where a method weighs sources."""
        if selected.weighs_sources:
            return self._evidence(subject, part)
        assert selected.rule is not None
        key = (selected.rule.folder, subject.name, part)
        if key not in self._lambdas:
            self._lambdas[key] = self._derive(subject, part, selected)
        return self._lambdas[key]

    def _derive(self, subject: Subject, part: int, selected: Selected) -> pa.Table:
        if part in self.committed(subject):
            return derive_samples(self.context, selected, self._evidence(subject, part)).select(["row", "lambda"])
        known = derive_samples(self.context, selected, self.first[subject.name])["lambda"].to_numpy()
        rows = subject.rows(part)
        return pa.table({"row": rows, "lambda": imagine_lambdas(known, len(rows), seed=part)})

    def _evidence(self, subject: Subject, part: int) -> pa.Table:
        if part in self.committed(subject):
            return read_table(self.context.directory.evidence(subject.name, part))
        rows, first = subject.rows(part), self.first[subject.name]
        drawn = first.take(pa.array(np.random.default_rng(part).integers(len(first), size=len(rows))))
        return drawn.set_column(0, "row", pa.array(rows))


def imagine_lambdas(known: NDArray[np.float32], count: int, *, seed: int) -> NDArray[np.float32]:
    """λ [count] distributed as the ``known`` ones: their quantiles, interpolated where neighbours are near."""
    ascending = np.sort(known).astype(np.float64)
    ranks = np.random.default_rng(seed).random(count) * (len(ascending) - 1)
    low = ranks.astype(np.int64)
    gaps = np.diff(ascending, append=ascending[-1])[low]
    steps = np.where(gaps <= WIDEST_GAP, (ranks - low) * gaps, np.round(ranks - low) * gaps)
    return (ascending[low] + steps).astype(np.float32)
