"""Source: another source's images, corrupted here, where no corrupted files were released.

A corrupted image is a function of the seed, the base image's sample id, the corruption and the severity alone: not of
the order or the ranges in which the images are read.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from pipeline.archives.corruptions import corrupt_image
from pipeline.archives.severities import parameters_of
from pipeline.archives.source import JSON, Source, SourceImage, describe_defect, split_by_block

OPERATORS_VERSION = 1


class CorruptSource:
    """All images of ``base`` for each corruption, and for each of its severities, in the order given.

    ``parameters`` names the published strengths (:data:`pipeline.archives.severities.PARAMETER_SETS`). ``group_id`` is
    the base image's own or, where it has none, its sample id. A base image with a problem keeps it. The identity's kind
    is ``corrupt``: these are never a benchmark's released files.
    """

    def __init__(
        self, base: Source, corruptions: Sequence[str], severities: Sequence[int], *, parameters: str, seed: int
    ) -> None:
        self._base, self._seed = base, seed
        published = parameters_of(parameters)
        self._blocks = [
            (corruption, severity, published[corruption][severity - 1])
            for corruption, severity in product(corruptions, severities)
        ]
        self._settings: dict[str, JSON] = {
            "kind": "corrupt",
            "operators": OPERATORS_VERSION,
            "corruptions": list(corruptions),
            "severities": list(severities),
            "parameters": parameters,
            "seed": seed,
        }
        self.class_names = base.class_names

    @property
    def identity(self) -> dict[str, JSON]:
        """The settings, and under ``of`` the identity of the base."""
        return {**self._settings, "of": self._base.identity}

    def __len__(self) -> int:
        return len(self._base) * len(self._blocks)

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        """Yield the images of a range, corrupted one at a time."""
        assert 0 <= start <= stop <= len(self)
        size = len(self._base)
        for block, first, last in split_by_block(start, stop, size):
            for image in self._base.read(first, last):
                yield replace(self._corrupted(image, *self._blocks[block]), index=block * size + image.index)

    def _corrupted(self, base: SourceImage, corruption: str, severity: int, parameter: float) -> SourceImage:
        changed = replace(
            base,
            sample_id=f"{base.sample_id}/{corruption}/{severity}",
            group_id=base.group_id or base.sample_id,
            corruption=corruption,
            severity=severity,
        )
        if base.image is None:
            return changed
        key = f"{self._seed}/{corruption}/{severity}/{base.sample_id}"
        generator = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()))
        try:
            return replace(changed, image=corrupt_image(base.image, corruption, parameter, generator))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a picture is decoded here, and decoders raise anything
            return replace(changed, image=None, problem=describe_defect(error))
