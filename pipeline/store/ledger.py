"""The ledger: what a part of work cost, counted while it ran.

``forward_calls`` counts calls of a tower and ``forward_images`` the images (or prompts) in them, padding left out, per
model. Clocks are kept here and nowhere else, so that results of equal work have equal bytes.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

END = object()
MODELS = ("generalist", "expert", "merged")
PER_MODEL = ("image_forward_calls", "image_forward_images", "text_forward_calls", "text_forward_images")
TOTALS = ("merges", "merges_skipped", "images_read", "batches", "samples", "rejected")
# Stands beside the counts of a part that was written again from another method's, and names that method.
COPIED_FROM = "copied_from"
# Stands beside the counts of a part that was scored, wholly or from some tile on, in pieces smaller than a tile.
MICRO_BATCH = "micro_batch"


@dataclass(slots=True)
class Ledger:
    """Counts per model, counts, and seconds by phase; ledgers add up.

    ``micro_batch`` is set where memory ran out: the fewest images that were scored at once instead of a whole tile.
    """

    per_model: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in PER_MODEL})
    totals: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    micro_batch: int | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the enclosed work to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def timed[T](self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The ``items``, the time spent waiting for each of them added to ``name``."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                item = next(iterator, END)
            if item is END:
                return
            yield cast("T", item)

    def add(self, other: "Ledger") -> None:
        """Add another ledger's counts and seconds to this one."""
        for name in PER_MODEL:
            self.per_model[name].update(other.per_model[name])
        self.totals.update(other.totals)
        for name, value in other.seconds.items():
            self.seconds[name] += value
        self.note_micro_batch(other.micro_batch)

    def note_micro_batch(self, size: int | None) -> None:
        """Keep the smaller of ``size`` and what was noted before; None is a whole tile."""
        self.micro_batch = min((found for found in (self.micro_batch, size) if found is not None), default=None)

    def as_json(self) -> dict[str, Any]:
        """Counts (zero where nothing happened; models beyond the usual three where something did), seconds by phase.

        ``micro_batch`` is absent where all tiles were whole.
        """
        counts: dict[str, Any] = {}
        for name, by_model in self.per_model.items():
            others = {model for model, count in by_model.items() if count} - set(MODELS)
            models = [*MODELS, *sorted(others)]
            counts[name] = {model: by_model[model] for model in models}
        counts |= {name: self.totals[name] for name in TOTALS}
        seconds = {name: round(value, 6) for name, value in sorted(self.seconds.items())}
        marks = {} if self.micro_batch is None else {MICRO_BATCH: self.micro_batch}
        return {"counts": counts, "seconds": seconds, **marks}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Ledger":
        """Read what :meth:`as_json` wrote."""
        counts = value["counts"]
        return cls(
            per_model={name: Counter(counts[name]) for name in PER_MODEL},
            totals=Counter({name: counts[name] for name in TOTALS}),
            seconds=defaultdict(float, value["seconds"]),
            micro_batch=value.get(MICRO_BATCH),
        )
