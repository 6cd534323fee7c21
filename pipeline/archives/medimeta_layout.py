"""What a MedIMeta data set says beside its pixels (Woerner et al. 2024, arXiv 2404.16000).

A data set is a folder of:

    DATASET/info.yaml                        tasks, each with its labels by number; licence and addresses
    DATASET/splits/{train,val,test}.txt      images/000017.tiff, one per line; the number is the position of the image
    DATASET/original_splits/...              the same, as the data set that the images were taken from has it
    DATASET/task_labels/TASK.npy             one label for each image
    DATASET/annotations.csv                  one line for each image; patient_id where the data set has it

A data set without annotations has no groups.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import yaml

from pipeline.archives.npy import read_array_header
from pipeline.errors import AbsentSourceError, SourceError, one_line

CLASS_TARGETS = ("BINARY_CLASSIFICATION", "MULTICLASS_CLASSIFICATION", "ORDINAL_REGRESSION")
MULTI_LABEL = "MULTILABEL_CLASSIFICATION"
SPLIT_FOLDERS = {"medimeta": "splits", "original": "original_splits"}
# No more digits than int64 holds: a number that Python will not read is no image's.
IMAGE_PATH = re.compile(r"images/(\d{6,18})\.tiff")
GROUP_COLUMN = "patient_id"


@dataclass(frozen=True, slots=True)
class Task:
    """A task of one label per image: the number that labels have for each class, ascending, and the classes' names."""

    name: str
    numbers: tuple[int, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Info:
    """What ``info.yaml`` says: its tasks as they stand there, and where the images come from."""

    path: Path
    tasks: Mapping[str, Mapping[str, Any]]
    license: str | None
    homepage: str | None

    def task(self, name: str | None) -> Task:
        """The task ``name``, by default the only one; :class:`SourceError` when it is unknown or not of one label."""
        listed = ", ".join(repr(known) for known in self.tasks)
        if name is None and len(self.tasks) > 1:
            raise SourceError(f"{self.path}: has several tasks; name one as 'task': {listed}")
        chosen = next(iter(self.tasks)) if name is None else name
        if chosen not in self.tasks:
            raise SourceError(f"{self.path}: has no task {chosen!r}; tasks there: {listed}")
        target, labels = self.tasks[chosen].get("task_target"), self.tasks[chosen].get("labels")
        if target == MULTI_LABEL:
            raise SourceError(f"{self.path}: task {chosen!r} is multi-label; only single-label tasks are supported")
        if target not in CLASS_TARGETS:
            known = ", ".join(CLASS_TARGETS)
            raise SourceError(f"{self.path}: task {chosen!r} has target {target!r}; supported are {known}")
        return Task(chosen, *self._classes(chosen, labels))

    def _classes(self, task: str, labels: object) -> tuple[tuple[int, ...], tuple[str, ...]]:
        try:
            by_number = {int(number): str(name).strip() for number, name in dict(labels).items()}  # type: ignore[call-overload]
        except (TypeError, ValueError) as error:
            raise SourceError(f"{self.path}: 'labels' of task {task!r} must map numbers to names") from error
        names = tuple(by_number[number] for number in sorted(by_number))
        if len(names) < 2 or len(set(names)) != len(names) or not all(names):
            raise SourceError(f"{self.path}: 'labels' of task {task!r} must be two or more different names")
        return tuple(sorted(by_number)), names


def read_info(folder: Path) -> Info:
    """Read ``info.yaml``; :class:`SourceError` when it is absent, no YAML, or lists no tasks."""
    path = folder / "info.yaml"
    try:
        # Every scalar as text: YAML's own reading would turn a class named "no" into a truth value.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 - makes no objects
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SourceError(f"{path}: cannot be read ({one_line(error)}); fetch the data set again") from error
    try:
        tasks = {str(task["task_name"]): task for task in content["tasks"]}
    except (TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"{path}: lists no tasks by 'task_name'; fetch the data set again") from error
    if not tasks:
        raise SourceError(f"{path}: lists no tasks by 'task_name'; fetch the data set again")
    addresses = (content.get(key) for key in ("original_download_url", "original_paper", "download_url"))
    return Info(path, tasks, content.get("license") or None, next((address for address in addresses if address), None))


def split_path(folder: Path, split: str, splits: str) -> Path:
    """File of a split; :class:`SourceError` names those that are there when this one is not."""
    path = folder / SPLIT_FOLDERS[splits] / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))) or "none"
        raise SourceError(f"{path}: no such split; splits there: {there}")
    return path


def read_split(path: Path, count: int) -> npt.NDArray[np.int64]:
    """Positions of the images that a split lists, ascending; each must be one of ``count``.

    :class:`SourceError` for a line that is not the path of an image, for an image listed twice, and for an empty split.
    """
    positions = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read ({one_line(error)}); fetch the data set again") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = IMAGE_PATH.fullmatch(line.strip())
        if found is None:
            raise SourceError(f"{path}: line {number} is not images/NUMBER.tiff but {line.strip()[:60]!r}")
        if int(found[1]) >= count:
            raise SourceError(f"{path}: line {number} lists image {int(found[1])}, but there are {count}")
        positions.append(int(found[1]))
    if not positions:
        raise SourceError(f"{path}: lists no images; choose another split")
    if len(set(positions)) != len(positions):
        raise SourceError(f"{path}: lists an image more than once; fetch the data set again")
    return np.array(sorted(positions), dtype=np.int64)


def read_labels(path: Path) -> npt.NDArray[np.int64]:
    """Label of every image as the file has it, [N]; nothing is unpickled.

    :class:`SourceError` when the file is absent, damaged, multi-label, shorter or longer than its header announces, or
    not of whole numbers.
    """
    try:
        with path.open("rb") as stream:
            labels = _read_whole_numbers(path, stream)
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise AbsentSourceError(f"{path}: no such file; fetch the data set again") from error
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"{path}: damaged or not an .npy file ({one_line(error)}); fetch it again") from error
    return labels.astype(np.int64).reshape(-1)


def _read_whole_numbers(path: Path, stream: BinaryIO) -> npt.NDArray[np.integer[Any] | np.bool]:
    header = read_array_header(stream)
    if header.dtype.kind not in "iub":
        raise SourceError(f"{path}: has dtype {header.dtype}; whole numbers are needed")
    if len(header.shape) not in (1, 2) or header.shape[1:] not in ((), (1,)):
        raise SourceError(f"{path}: has shape {header.shape}; one label for each image is needed")
    if not header.fits(path.stat().st_size):
        raise SourceError(f"{path}: does not hold the {header.shape} values it announces; fetch it again")
    stream.seek(0)
    labels: npt.NDArray[np.integer[Any] | np.bool] = np.lib.format.read_array(stream, allow_pickle=False)
    return labels


def read_groups(path: Path, positions: Sequence[int]) -> list[str | None] | None:
    """Patient of each of ``positions`` by ``annotations.csv``; None where it has no column of patients.

    :class:`SourceError` when the file is damaged or lacks one of the images.
    """
    if not path.is_file():
        return None
    patients: dict[int, str | None] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if GROUP_COLUMN not in (rows.fieldnames or ()):
                return None
            for row in rows:
                found = IMAGE_PATH.fullmatch(row.get("filepath") or "")
                if found is not None:
                    patients[int(found[1])] = _known(row[GROUP_COLUMN])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read ({one_line(error)}); fetch the data set again") from error
    absent = next((position for position in positions if position not in patients), None)
    if absent is not None:
        raise SourceError(f"{path}: has no line for images/{absent:06d}.tiff; fetch the data set again")
    return [patients[position] for position in positions]


def _known(patient: str | None) -> str | None:
    return None if patient is None or patient.strip().lower() in {"", "nan", "none"} else patient.strip()
