"""From counts and prices to stages: time, device hours and bottleneck of what is left and of everything."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.drivers.planning.calibration import DevicePrices, read_counts
from pipeline.drivers.planning.counts import Item, MergeCounter
from pipeline.drivers.planning.elapsed import Seconds, add_up, bottleneck, makespan
from pipeline.drivers.planning.files import FileCost

# By evaluation set, the files that one of its items writes.
type Files = Mapping[str, Sequence[FileCost]]


@dataclass(frozen=True, slots=True)
class Worked:
    """An item with the seconds that it takes on a worker, and how often models are merged and heads made for it.

    ``prompts`` is the number of prompts in one of its text forwards.
    """

    item: Item
    seconds: Seconds
    merges: int = 0
    heads: int = 0
    prompts: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of the plan: all work of one stage, for one method where it has one.

    ``left`` are the items not committed yet, ``everything`` all. ``serial``: the driver does them, one after another.
    """

    name: str
    method: str | None
    left: Sequence[Worked]
    everything: Sequence[Worked]
    serial: bool = False

    def as_json(self, workers: Sequence[int], threads: int) -> dict[str, Any]:
        """Counts and times; see :mod:`pipeline.drivers.plan`."""
        return {
            "stage": self.name,
            "method": self.method,
            "parallel": not self.serial,
            "left": self._described(self.left, workers, threads),
            "total": self._described(self.everything, workers, threads),
        }

    def _described(self, items: Sequence[Worked], workers: Sequence[int], threads: int) -> dict[str, Any]:
        seconds = add_up(item.seconds for item in items)
        times = {}
        for asked in workers:
            used = min(1 if self.serial else asked, max(len(items), 1))
            wall = makespan([item.seconds.elapsed for item in items], used)
            times[str(asked)] = {"seconds": wall, "workers": used, "device_hours": used * threads * wall / 3600}
        shares = {"reading": seconds.read, "device": seconds.device, "writing": seconds.write}
        return {
            "parts": len(items),
            "images": sum(item.item.images for item in items),
            "image_forward_calls": sum(item.item.calls for item in items),
            "image_forward_images": sum(item.item.forward_images for item in items),
            "batches": sum(item.item.batches for item in items),
            "merges": sum(item.merges for item in items),
            "text_forward_calls": sum(item.heads for item in items),
            "text_forward_images": sum(item.heads * item.prompts for item in items),
            "seconds_by": shares,
            "bottleneck": bottleneck(seconds),
            "times": times,
        }


@dataclass(frozen=True, slots=True)
class Pricing:
    """Prices of a run's items; ``text`` is what a text forward of a set costs, ``prompts`` how many prompts it has.
    ``exact_heads`` are the sets whose heads are made for every λ.

    ``mergeable``: the sources differ, so that merging them is work. ``merge_ahead``: workers hold two merged models.
    """

    device: DevicePrices
    text: Mapping[str, float]
    prompts: Mapping[str, int]
    exact_heads: frozenset[str]
    mergeable: bool
    merge_ahead: bool

    def counter(self) -> MergeCounter:
        """Counter of what a fresh worker merges."""
        return MergeCounter(self.exact_heads, self.merge_ahead)

    def evidence(self, items: Iterable[Item], files: Files) -> list[Worked]:
        """Stage one: every tile through all sources."""
        return [
            Worked(
                item,
                Seconds(
                    read=self._read(item),
                    device=item.calls / item.weights.shape[1] * self.device.sources,
                    write=_writing(item, files),
                    blocks=item.blocks,
                ),
            )
            for item in items
        ]

    def inference(self, items: Iterable[Item], files: Files, counter: MergeCounter, *, exact: bool) -> list[Worked]:
        """Stage two: the items of a method in the order of one worker, whose last merge ``counter`` knows."""
        worked = []
        for item in items:
            merges = counter.merges(item) if self.mergeable else 0
            heads = counter.heads(item)
            device = self._forwards(item, exact=exact) + heads * self.text[item.evaluation_set]
            if merges:
                device += merges * self.device.merge_of(int((item.weights > 0).sum(axis=1).max()))
            seconds = Seconds(self._read(item), device, _writing(item, files), item.blocks)
            worked.append(Worked(item, seconds, merges, heads, self.prompts[item.evaluation_set]))
        return worked

    def _read(self, item: Item) -> float:
        if not item.blocks:
            return 0.0
        return self.device.read.predict(read_counts(item.decoded, item.images, item.blocks))

    def _forwards(self, item: Item, *, exact: bool) -> float:
        if not item.calls:
            return 0.0
        if exact:
            return item.calls / 2 * self.device.per_sample[item.tile]
        return item.calls * self.device.merged[item.tile]


def chore(seconds: float, *, merges: int = 0, heads: int = 0, prompts: int = 0) -> Worked:
    """Work on no images: loading models, text forwards, batch plans."""
    return Worked(Item.of_images(), Seconds(device=seconds), merges, heads, prompts)


def _writing(item: Item, files: Files) -> float:
    return sum(cost.seconds(item.images) for cost in files[item.evaluation_set])
