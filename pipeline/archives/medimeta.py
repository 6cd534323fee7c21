"""Source: one split of a MedIMeta data set in its released layout, class names by its own info.yaml.

Pixels are ``images.hdf5`` (dataset ``images``: uint8 [N, H, W, C]) or, where that is absent, ``images/000017.tiff`` and
so on. The layout of the other files is in :mod:`pipeline.archives.medimeta_layout`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.archives.hdf5 import Hdf5Images
from pipeline.archives.image_files import digest_images, list_image, load_image
from pipeline.archives.medimeta_layout import GROUP_COLUMN, read_groups, read_info, read_labels, read_split, split_path
from pipeline.archives.source import JSON, SourceImage
from pipeline.errors import AbsentSourceError, SourceError
from pipeline.store.fingerprints import digest_file

PUBLISHED = "https://doi.org/10.5281/zenodo.7884735"
HDF5_NAME = "images.hdf5"


class _Pixels(Protocol):
    @property
    def size(self) -> list[JSON] | None:
        """Height and width, where they are known before any image is read."""
        ...

    def __len__(self) -> int: ...

    def read(self, positions: npt.NDArray[np.int64]) -> Iterator[tuple[str, Image.Image | str]]:
        """Yield file name and image, or what is wrong with it, of ascending positions."""
        ...

    def digest(self, positions: npt.NDArray[np.int64]) -> str: ...


class MedIMetaSource:
    """One split and task of the data set in ``folder``, images in ascending order of their numbers.

    A label becomes the place of its number in the task's labels; ``splits`` is ``medimeta`` or ``original``. A label
    that the task does not know and a TIFF that cannot be read are problems of that image; :class:`SourceError` for
    files that are absent, damaged or do not fit together.
    """

    def __init__(self, folder: Path, split: str, task: str | None = None, splits: str = "medimeta") -> None:
        self.folder = folder
        info = read_info(folder)
        self._task = info.task(task)
        self._files = {
            "labels": folder / "task_labels" / f"{self._task.name}.npy",
            "split": split_path(folder, split, splits),
        }
        labels = read_labels(self._files["labels"])
        self._pixels: _Pixels = _Hdf5(folder) if (folder / HDF5_NAME).exists() else _Tiffs(folder, len(labels))
        if len(self._pixels) != len(labels):
            counts = f"{len(self._pixels)} images but {len(labels)} labels of task {self._task.name!r}"
            raise SourceError(f"{folder}: {counts}; fetch the data set again")
        self._positions = read_split(self._files["split"], len(labels))
        self._labels = labels[self._positions]
        self._groups = read_groups(folder / "annotations.csv", self._positions.tolist())
        if self._groups is not None:
            self._files["annotations"] = folder / "annotations.csv"
        self._settings: dict[str, JSON] = {
            "kind": "medimeta",
            "dataset": folder.name,
            "task": self._task.name,
            "split": split,
            "splits": splits,
            "license": info.license,
            "homepage": info.homepage,
            "size": self._pixels.size,
        }
        # Labels are places among the numbers: the same files mean something else once these are others. Where they
        # simply count, the key is left out, as in the archives made before it was there.
        if self._task.numbers != tuple(range(len(self._task.numbers))):
            self._settings["numbers"] = [*self._task.numbers]
        self._digests: dict[str, JSON] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the task's classes, by ascending number."""
        return self._task.class_names

    @property
    def identity(self) -> dict[str, JSON]:
        """Kind, data set, task, split, licence, and SHA-256 of the files with pixels, labels, split and patients.

        Of ``info.yaml`` it has the classes' ``numbers`` where they are not 0, 1, 2 and so on; their names are
        ``class_names``, which an archive keeps by itself. The digests are computed on first use, then kept.
        """
        if self._digests is None:
            digests: dict[str, JSON] = {f"{name}_sha256": digest_file(path) for name, path in self._files.items()}
            self._digests = {**digests, "sha256": self._pixels.digest(self._positions)}
        return {**self._settings, **self._digests}

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        """Yield the images of a range, in bounded memory."""
        assert 0 <= start <= stop <= len(self)
        for index, (name, image) in enumerate(self._pixels.read(self._positions[start:stop]), start=start):
            yield self._source_image(index, name, image)

    def _source_image(self, index: int, name: str, image: Image.Image | str) -> SourceImage:
        number = int(self._labels[index])
        known = number in self._task.numbers
        problem = image if isinstance(image, str) else None
        if not known:
            problem = f"label {number} is none of the {len(self.class_names)} that task {self._task.name!r} has"
        patient = None if self._groups is None else self._groups[index]
        return SourceImage(
            index=index,
            sample_id=f"{self.folder.name}/{_image_path(int(self._positions[index]))}",
            label=self._task.numbers.index(number) if known else None,
            group_id=None if patient is None else f"{self.folder.name}/{GROUP_COLUMN}/{patient}",
            source=name,
            image=image if problem is None and not isinstance(image, str) else None,
            problem=problem,
        )


def find_medimeta(dataset: str, root: Path | None, data_root: Path | None) -> Path:
    """Folder of a MedIMeta data set: in ``root``, else in ``data_root/medimeta`` or ``data_root``.

    :class:`SourceError` says where MedIMeta is published and how to name the folder.
    """
    roots: Sequence[Path] = [root] if root else [data_root / "medimeta", data_root] if data_root else []
    if not roots:
        raise AbsentSourceError(
            f"medimeta set {dataset!r}: give 'root', the folder that holds {dataset}/, or a data root"
        )
    found = next((folder / dataset for folder in roots if (folder / dataset / "info.yaml").is_file()), None)
    if found is None:
        raise AbsentSourceError(
            f"{roots[0] / dataset}: no MedIMeta data set (no info.yaml); fetch {dataset} from {PUBLISHED} and unpack "
            "it there, or give 'root'"
        )
    return found


def _image_path(position: int) -> str:
    return f"images/{position:06d}.tiff"


class _Hdf5:
    """All images in one HDF5 file."""

    def __init__(self, folder: Path) -> None:
        self._images = Hdf5Images(folder / HDF5_NAME)

    @property
    def size(self) -> list[JSON]:
        return [*self._images.shape[1:3]]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, positions: npt.NDArray[np.int64]) -> Iterator[tuple[str, Image.Image | str]]:
        for pixels in self._images.read(positions):
            yield HDF5_NAME, Image.fromarray(pixels)

    def digest(self, _: npt.NDArray[np.int64]) -> str:
        return digest_file(self._images.path)


class _Tiffs:
    """A TIFF file for each image, as many as there are labels; those of the split may be there alone."""

    size = None

    def __init__(self, folder: Path, count: int) -> None:
        if not (folder / "images").is_dir():
            raise AbsentSourceError(f"{folder}: holds neither {HDF5_NAME} nor images/; fetch the data set again")
        self._folder, self._count = folder, count

    def __len__(self) -> int:
        return self._count

    def read(self, positions: npt.NDArray[np.int64]) -> Iterator[tuple[str, Image.Image | str]]:
        for position in positions.tolist():
            path = _image_path(position)
            yield path, load_image(self._folder, list_image(self._folder, path))

    def digest(self, positions: npt.NDArray[np.int64]) -> str:
        paths = (_image_path(position) for position in positions.tolist())
        return digest_images(self._folder, (list_image(self._folder, path) for path in paths))
