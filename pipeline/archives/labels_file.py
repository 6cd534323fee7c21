"""A CSV file that lists images and their classes: header ``path,label`` or ``path,label,group_id``, one image a line.

``path`` is POSIX and relative to the images' folder. ``label`` is the name of a class; where the classes are named
beforehand and no label of the file is such a name, it is a class's place among them, from 0. An empty label is not
known, an empty group is none.
"""

import csv
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import AbsentSourceError, SourceError, one_line

# As many as int64 holds; Python reads no number of more than 4,300.
MAX_DIGITS = 18
HEADERS = (["path", "label"], ["path", "label", "group_id"])


@dataclass(frozen=True, slots=True)
class LabelledPath:
    """A line of the file; ``label`` is a class's place, or any number where the file numbers classes itself."""

    path: str
    label: int | None
    group_id: str | None


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    path: str
    label: str
    group_id: str | None


def read_labels_file(file: Path, class_names: Sequence[str] | None) -> tuple[tuple[str, ...], list[LabelledPath]]:
    """Names of the classes and the lines, in the file's order.

    Without ``class_names`` the classes are the labels that occur, in alphabetical order. Raises :class:`SourceError`
    naming the line for a class that is not among them, a path that leads out of the folder or occurs twice, and a line
    of another shape. A number that is too large for ``class_names`` is left for the reader of the images to reject.
    """
    lines = list(_read_lines(file))
    if not lines:
        raise SourceError(f"{file}: lists no images")
    _check_paths(file, lines)
    names = tuple(class_names) if class_names is not None else _occurring(file, lines)
    places = {name: place for place, name in enumerate(names)}
    numbered = not any(line.label in places for line in lines) and any(_is_number(line.label) for line in lines)
    listed = []
    for line in lines:
        if line.label and not (_is_number(line.label) if numbered else line.label in places):
            nearest = difflib.get_close_matches(line.label, names, n=1)
            guess = f"did you mean {nearest[0]!r}?; " if nearest else ""
            raise SourceError(
                f"{file}: line {line.number}: unknown class {line.label[:60]!r}; {guess}known: {_list(names)}"
            )
        if numbered and len(line.label) > MAX_DIGITS:
            raise SourceError(f"{file}: line {line.number}: a label of {len(line.label):,} digits is no class's place")
        label = None if not line.label else int(line.label) if numbered else places[line.label]
        listed.append(LabelledPath(line.path, label, line.group_id))
    return names, listed


def _read_lines(file: Path) -> Iterator[_Line]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(rows, [])]
            if header not in HEADERS:
                raise SourceError(
                    f"{file}: the first line must be path,label or path,label,group_id, got {_list(header)}"
                )
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise SourceError(f"{file}: line {rows.line_num} has {len(row)} cells, the header {len(header)}")
                path, label, *group = (cell.strip() for cell in row)
                yield _Line(rows.line_num, PurePosixPath(path).as_posix(), label, group[0] or None if group else None)
    except FileNotFoundError as error:
        raise AbsentSourceError(f"{file}: no such file; check 'labels'") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{file}: cannot be read as CSV in UTF-8 ({one_line(error)})") from error


def _check_paths(file: Path, lines: Sequence[_Line]) -> None:
    seen: dict[str, int] = {}
    for line in lines:
        path = PurePosixPath(line.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise SourceError(f"{file}: line {line.number}: {line.path!r} is not a path inside the images' folder")
        if line.path in seen:
            raise SourceError(f"{file}: line {line.number}: {line.path!r} is on line {seen[line.path]} already")
        seen[line.path] = line.number


def _occurring(file: Path, lines: Sequence[_Line]) -> tuple[str, ...]:
    names = sorted({line.label for line in lines if line.label})
    if len(names) < 2:
        raise SourceError(f"{file}: names {len(names)} classes; give 'class_names', two or more")
    if all(_is_number(name) for name in names):
        raise SourceError(f"{file}: its labels are numbers; give 'class_names', in the order of these numbers")
    return tuple(names)


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
