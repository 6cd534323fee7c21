"""What every source of images looks like to an archive: a list of fixed length, read range by range."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

type JSON = bool | int | float | str | list[JSON] | dict[str, JSON] | None


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One listed image, or the reason why it cannot be used: exactly one of ``image`` and ``problem`` is set.

    ``index`` is the position in the source's list. ``group_id`` ties together images that must not be treated as
    independent (one patient, one cell under several corruptions); where it is None, ``sample_id`` is the group.
    ``source`` is a file name or another short origin. ``corruption`` and ``severity`` (1 to 5) say what was done to the
    image; both are None for a clean one.
    """

    index: int
    sample_id: str
    label: int | None
    group_id: str | None
    source: str
    image: Image.Image | None
    problem: str | None
    corruption: str | None = None
    severity: int | None = None

    def __post_init__(self) -> None:
        assert (self.image is None) != (self.problem is None), "exactly one of image and problem must be set"


class Source(Protocol):
    """Images of one evaluation set in a fixed order. Implementations can be pickled and sent to workers."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        ...

    @property
    def identity(self) -> dict[str, JSON]:
        """What makes the images what they are: kind, settings, SHA-256 of the file; never an absolute path."""
        ...

    def __len__(self) -> int:
        """Count the listed images, usable or not."""
        ...

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        """Yield the images ``start <= index < stop`` in order, in bounded memory.

        A defect of one image is a :class:`SourceImage` with a ``problem``; only a defect of the source as a whole
        raises :class:`pipeline.errors.SourceError`.
        """
        ...


def describe_defect(error: Exception) -> str:
    """Why one image cannot be used, on one line, from what a decoder raised: the same words in every process."""
    # An object's address in a message would make equal work give unequal bytes.
    reason = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {reason}"


def split_by_block(start: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut ``start <= index < stop`` where blocks of ``size`` meet: block, and first and last + 1 inside it."""
    for block in range(start // size, -(-stop // size)):
        yield block, max(start - block * size, 0), min(stop - block * size, size)


class FirstImages:
    """The first ``limit`` images of a source, under an identity of their own."""

    def __init__(self, source: Source, limit: int) -> None:
        self._source, self._limit = source, limit
        self.class_names = source.class_names
        self.identity: dict[str, JSON] = {**source.identity, "limit": limit}

    def __len__(self) -> int:
        return min(self._limit, len(self._source))

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        """Images ``start`` to ``stop`` of the source."""
        return self._source.read(start, stop)


class ChosenImages:
    """The images of a source at ``positions``, in ascending order, under an identity of their own."""

    def __init__(self, source: Source, positions: NDArray[np.int64], identity: Mapping[str, JSON]) -> None:
        self._source, self._positions = source, np.sort(positions)
        self.class_names = source.class_names
        self.identity: dict[str, JSON] = {**source.identity, **identity}

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        """Images ``start`` to ``stop`` of the choice, under their sample ids in the source."""
        for index, position in zip(range(start, stop), self._positions[start:stop], strict=True):
            for image in self._source.read(int(position), int(position) + 1):
                yield replace(image, index=index)
