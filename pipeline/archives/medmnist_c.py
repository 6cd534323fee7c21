"""Source: a corrupted test set in MedMNIST-C's released layout, ``{root}/{set}/{corruption}.npz``.

Each file holds ``test_images`` and ``test_labels``: the clean test set's N images five times over, by severity, so that
rows [(s-1)·N, s·N) are severity s (medmnistc's DatasetManager writes them so).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.archives.medmnist import published_class_names
from pipeline.archives.npz import NpzSource
from pipeline.archives.severities import FOLDS, MEDMNIST_C, SEVERITIES
from pipeline.archives.source import JSON, SourceImage, split_by_block
from pipeline.archives.stratified import stratified_choice
from pipeline.errors import AbsentSourceError, SourceError

SPLIT = "test"
PLACE = "https://zenodo.org/records/11471504"


class MedMNISTCSource:
    """Base images for each corruption's file, in their order, and in it for each of ``severities``.

    ``group_id`` names the base image as the clean set's own source does (``breastmnist/test/17``). ``stratified`` is
    the number of base images and the seed they are drawn with, the same at every severity and corruption. Raises
    :class:`SourceError` when a file is not in the layout or the files are not of the same base images.
    """

    def __init__(
        self,
        dataset: str,
        files: Mapping[str, NpzSource],
        severities: Sequence[int],
        *,
        identity: Mapping[str, JSON],
        stratified: tuple[int, int] | None = None,
    ) -> None:
        first, *others = files.values()
        labels = _base_labels(first)
        for other in others:
            if _differ(_base_labels(other), labels, len(first.class_names)):
                raise SourceError(f"{other.path}: its labels are not those of {first.path.name}; fetch both again")
        self.class_names = first.class_names
        self._dataset, self._files, self._base_rows = dataset, files, len(labels)
        self._blocks = list(product(files, severities))
        self._declared = dict(identity)
        self._positions = np.arange(len(labels))
        if stratified is not None:
            try:
                self._positions = stratified_choice(labels, *stratified)
            except ValueError as error:
                raise SourceError(f"{first.path.parent}: {error}") from error

    @property
    def identity(self) -> dict[str, JSON]:
        """What was asked for, and the SHA-256 of each file."""
        digests: dict[str, JSON] = {name: file.identity["sha256"] for name, file in self._files.items()}
        return {**self._declared, "files": digests}

    def __len__(self) -> int:
        return len(self._positions) * len(self._blocks)

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        """Yield the images of a range; ranges in ascending order decompress each file once."""
        assert 0 <= start <= stop <= len(self)
        size = len(self._positions)
        for block, first, last in split_by_block(start, stop, size):
            corruption, severity = self._blocks[block]
            for offset, position in enumerate(self._positions[first:last].tolist(), first):
                row = (severity - 1) * self._base_rows + position
                for image in self._files[corruption].read(row, row + 1):
                    yield replace(
                        image,
                        index=block * size + offset,
                        sample_id=f"{self._dataset}/{corruption}/{severity}/{position}",
                        group_id=f"{self._dataset}/{SPLIT}/{position}",
                        corruption=corruption,
                        severity=severity,
                    )


def open_medmnist_c(
    dataset: str,
    roots: Sequence[Path],
    *,
    corruptions: Sequence[str] | None,
    folds: Sequence[str] | None,
    severities: Sequence[int],
    class_names: Sequence[str] | None,
    identity: Mapping[str, JSON],
    stratified: tuple[int, int] | None = None,
) -> MedMNISTCSource:
    """Open the files of ``corruptions``, or of MedMNIST-C's ``folds`` of them, or all files of a set.

    The set's folder is looked for in ``roots``, in order. A fold holds the corruptions that MedMNIST-C has for this
    set; of a set that it does not know, those whose files are there. Raises :class:`SourceError` for an absent folder
    or file, a fold without any corruption for this set, and class names that are neither given nor published.
    """
    if folds is not None and dataset in MEDMNIST_C:
        corruptions = _members("MedMNIST-C has", dataset, MEDMNIST_C[dataset], folds)
    folder = _folder(dataset, roots)
    names = class_names or published_class_names(dataset)
    if names is None:
        raise SourceError(f"{folder}: medmnist has no set {dataset!r}; give its 'class_names' in label order")
    present = sorted(path.stem for path in folder.glob("*.npz"))
    if not present:
        raise AbsentSourceError(f"{folder}: holds no .npz file; {_remedy(folder)}")
    if corruptions is None:
        corruptions = present if folds is None else _members(f"{folder}: has", dataset, present, folds)
    missing = [f"{name}.npz" for name in corruptions if name not in present]
    if missing:
        listed = ", ".join(present)
        raise AbsentSourceError(
            f"{folder}: {', '.join(missing)} not there; corruptions there: {listed}; {_remedy(folder)}"
        )
    files = {name: NpzSource(folder / f"{name}.npz", SPLIT, names) for name in corruptions}
    return MedMNISTCSource(dataset, files, severities, identity=identity, stratified=stratified)


def _folder(dataset: str, roots: Sequence[Path]) -> Path:
    if not roots:
        raise AbsentSourceError(
            f"medmnist-c set {dataset!r}: neither 'root' nor 'data_root' is given; give one of them"
        )
    folders = [root / dataset for root in roots]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        raise AbsentSourceError(f"{folders[0]}: no such folder; {_remedy(folders[0])}")
    return found


def _remedy(folder: Path) -> str:
    if folder.name in MEDMNIST_C:
        return f"get {folder.name}.zip of MedMNIST-C ({PLACE}) and unpack it to {folder}, or give another 'root'"
    return f"put its files CORRUPTION.npz in {folder}, or give another 'root'"


def _members(owner: str, dataset: str, known: Collection[str], folds: Sequence[str]) -> list[str]:
    """Corruptions of the folds among those ``known``, in MedMNIST-C's order."""
    members: list[str] = []
    for fold in folds:
        found = [name for name in FOLDS[fold] if name in known]
        if not found:
            others = ", ".join(name for name, names in FOLDS.items() if set(names) & set(known))
            raise SourceError(
                f"{owner} no corruption of fold {fold!r} for {dataset!r}; it has {others or 'no fold'}; "
                "choose another, or leave it out"
            )
        members += found
    return members


def _base_labels(file: NpzSource) -> NDArray[np.int64]:
    """Labels [N] of the base images, from a file of 5 N rows whose severities must all have them."""
    base, rest = divmod(len(file), len(SEVERITIES))
    if rest:
        raise SourceError(
            f"{file.path}: holds {len(file):,} images, which is not {len(SEVERITIES)} severities of equally many; "
            "fetch it again"
        )
    labels = file.labels.reshape(len(SEVERITIES), base)
    if _differ(labels, labels[0], len(file.class_names)):
        raise SourceError(
            f"{file.path}: its labels are not {len(SEVERITIES)} times the same; rows must be ordered by severity first"
        )
    first: NDArray[np.int64] = labels[0]
    return first


def _differ(labels: NDArray[np.int64], others: NDArray[np.int64], classes: int) -> bool:
    """Whether labels [..., N] are not of the same images; one outside the classes is a defect of its image alone."""
    if labels.shape[-1] != others.shape[-1]:
        return True
    known = (labels >= 0) & (labels < classes) & (others >= 0) & (others < classes)
    return bool(((labels != others) & known).any())
