"""Source: image files in a folder, one sub-folder for each class or with a CSV file of paths and labels.

Nothing is left out in silence: in class folders, a file that is neither an image nor a companion (:data:`COMPANIONS`,
hidden files) is listed and rejected. With a CSV file, that file is the list; what it does not name is not of the set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.archives.image_files import SUFFIXES, ImageFile, digest_images, list_image, load_image, unreadable
from pipeline.archives.labels_file import read_labels_file
from pipeline.archives.source import JSON, SourceImage
from pipeline.errors import AbsentSourceError, SourceError
from pipeline.store.fingerprints import digest_file

COMPANIONS = (".csv", ".json", ".md", ".txt")
SYSTEM_FILES = ("__macosx", "desktop.ini", "thumbs.db")


@dataclass(frozen=True, slots=True)
class _Listed:
    file: ImageFile
    label: int | None
    group_id: str | None
    problem: str | None


class FolderSource:
    """The images of ``path``; classes are its sub-folders, or what the CSV file ``labels`` names.

    ``class_names`` gives the classes' order, alphabetical by default; with class folders it must name each of them. A
    sub-folder's images may lie in folders of their own. Rows are in order of their paths, with ``labels`` in that of
    the file. Raises :class:`SourceError` for what is wrong with the folder or the file as a whole.
    """

    def __init__(self, path: Path, *, labels: Path | None = None, class_names: Sequence[str] | None = None) -> None:
        self.path = path
        self._labels = labels
        try:
            if not path.is_dir():
                raise AbsentSourceError(f"{path}: no such folder; check 'path'")
            if labels is None:
                self.class_names, self._listed = _list_class_folders(path, class_names)
            else:
                self.class_names, self._listed = _list_labelled(path, labels, class_names)
        except OSError as error:
            raise unreadable(Path(error.filename or path), error) from error
        self._digests: dict[str, JSON] | None = None

    @property
    def identity(self) -> dict[str, JSON]:
        """Kind, folder name, and SHA-256 over path, size and content of every file, kept once computed.

        Computing it reads all files once, as reading the images does a second time.
        """
        if self._digests is None:
            self._digests = {"sha256": digest_images(self.path, (item.file for item in self._listed))}
            if self._labels is not None:
                self._digests["labels_sha256"] = digest_file(self._labels)
        labels = None if self._labels is None else self._labels.name
        return {"kind": "folder", "folder": self.path.name, "labels": labels, **self._digests}

    def __len__(self) -> int:
        return len(self._listed)

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        """Yield the images of a range, one in memory at a time."""
        assert 0 <= start <= stop <= len(self)
        for index in range(start, stop):
            item = self._listed[index]
            image: Image.Image | str = item.problem or load_image(self.path, item.file)
            yield SourceImage(
                index=index,
                sample_id=f"{self.path.name}/{item.file.path}",
                label=item.label,
                group_id=item.group_id,
                source=item.file.path,
                image=None if isinstance(image, str) else image,
                problem=image if isinstance(image, str) else None,
            )


def _list_class_folders(path: Path, class_names: Sequence[str] | None) -> tuple[tuple[str, ...], list[_Listed]]:
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not _is_passed_over(entry))
    if len(folders) < 2:
        raise SourceError(
            f"{path}: has {len(folders)} class folders; two or more are needed, or a CSV file as 'labels'"
        )
    if class_names is not None and sorted(class_names) != folders:
        absent, extra = sorted(set(class_names) - set(folders)), sorted(set(folders) - set(class_names))
        problems = [f"{what} {', '.join(names)}" for what, names in (("absent", absent), ("not named", extra)) if names]
        raise SourceError(f"{path}: its class folders are not those of 'class_names': {'; '.join(problems)}")
    names = tuple(class_names or folders)
    places = {name: place for place, name in enumerate(names)}
    listed = []
    for file in sorted(_visible_files(path), key=lambda file: file.relative_to(path).as_posix()):
        relative = file.relative_to(path)
        problem = None
        if file.suffix.lower() not in SUFFIXES:
            problem = f"is of an unknown kind ({file.suffix or 'no extension'}); known: {', '.join(SUFFIXES)}"
        elif len(relative.parts) == 1:
            problem = "lies in no class folder"
        place = places.get(relative.parts[0])
        listed.append(_Listed(list_image(path, relative.as_posix()), place, None, problem))
    held = {item.label for item in listed if item.problem is None}
    if empty := [name for name, place in places.items() if place not in held]:
        raise SourceError(
            f"{path}: class folders without images: {', '.join(empty)}; fill or remove them, or give a CSV file as "
            "'labels' and all 'class_names'"
        )
    return names, listed


def _visible_files(path: Path) -> Iterator[Path]:
    for folder, names, files in path.walk(on_error=_refuse):
        names[:] = [name for name in names if not _is_passed_over(folder / name)]
        for name in files:
            file = folder / name
            if file.is_dir():
                raise SourceError(f"{file}: is a link to a folder; put the folder itself there")
            if not _is_passed_over(file) and file.suffix.lower() not in COMPANIONS:
                yield file


def _refuse(error: OSError) -> None:
    raise error


def _is_passed_over(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name.lower() in SYSTEM_FILES


def _list_labelled(
    path: Path, labels: Path, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], list[_Listed]]:
    names, lines = read_labels_file(labels, class_names)
    listed = []
    for line in lines:
        known = line.label is None or 0 <= line.label < len(names)
        problem = None if known else f"label {line.label} is outside the {len(names)} classes"
        listed.append(_Listed(list_image(path, line.path), line.label if known else None, line.group_id, problem))
    return names, listed
