"""A folder that stands for the run while its costs are measured: real archives by link, all else made in it."""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.archives.archive import Archive, create_or_open
from pipeline.archives.ingest import append_segment, write_part
from pipeline.archives.source import FirstImages, Source, SourceImage
from pipeline.drivers.planning.subjects import Subject
from pipeline.geometry import image_transform, prepare_image
from pipeline.stages.context import RunContext
from pipeline.store.files import TEMPORARY_PREFIX

FEW_IMAGES, ENOUGH_IMAGES = 32, 2048


@dataclass(frozen=True, slots=True)
class IngestPrice:
    """Seconds per image to decode and resize it and to store it, bytes per stored image, and images that were tried."""

    decode: float
    store: float
    bytes: float
    images: int


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The run's context with folders of its own, archives that hold first images, and what making new ones cost.

    ``context`` has the sets of ``representatives`` only: one for each list of class names.
    """

    root: Path
    context: RunContext
    archives: dict[str, Archive]
    ingest: dict[str, IngestPrice]
    representatives: dict[str, str]


@contextmanager
def open_sandbox(
    context: RunContext, subjects: Sequence[Subject], seconds: float, report: Callable[[str], None]
) -> Iterator[Sandbox]:
    """Make the folder on the run's own disk, where it may be written to, and remove it in the end."""
    near = _near(Path(context.manifest.output))
    with _terminated_as_exit(), tempfile.TemporaryDirectory(prefix=f"{TEMPORARY_PREFIX}plan-", dir=near) as made:
        root, archives, ingest = Path(made), {}, {}
        (root / "archives").mkdir()
        new = [subject for subject in subjects if subject.unwritten]
        for subject in subjects:
            path = root / "archives" / subject.name
            if subject.unwritten:
                report(f"{subject.name}: ingesting first images")
                tried, ingest[subject.name] = _try_ingest(subject, root / "ingest" / subject.name, seconds / len(new))
            if any(subject.images(part) for part in subject.written):
                path.symlink_to(subject.archive.path.resolve(), target_is_directory=True)
                archives[subject.name] = subject.archive
            elif tried.accepted(0):
                path.symlink_to(tried.path, target_is_directory=True)
                archives[subject.name] = tried
        representatives = _representatives(context, subjects, archives)
        items = [item for item in context.manifest.evaluation_sets if item.name in representatives.values()]
        manifest = context.manifest.model_copy(
            update={"output": str(root / "run"), "archives": str(root / "archives"), "evaluation_sets": items}
        )
        yield Sandbox(root, replace(context, manifest=manifest), archives, ingest, representatives)


@contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """Let SIGTERM, by which schedulers and ``timeout`` end a process, leave through ``finally`` as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _representatives(context: RunContext, subjects: Sequence[Subject], archives: dict[str, Archive]) -> dict[str, str]:
    """For each set the first one with its class names and with images: heads and tables are alike."""
    first: dict[tuple[str, ...], str] = {}
    names = {subject.name: tuple(context.class_names(subject.name, subject.archive)) for subject in subjects}
    for name in archives:
        first.setdefault(names[name], name)
    return {name: first[classes] for name, classes in names.items() if classes in first}


def _try_ingest(subject: Subject, path: Path, seconds: float) -> tuple[Archive, IngestPrice]:
    """Store the first images of the first source that is not stored yet, through the normal writer."""
    position, _ = subject.archive.segment_of(min(subject.unwritten))
    source = subject.sources[position]
    limit = min(len(source), subject.archive.part_rows, ENOUGH_IMAGES)
    decode = _decoding(subject, source, limit, seconds / 3)
    images = min(limit, max(FEW_IMAGES, int(seconds / 3 / max(decode, 1e-9))))
    archive = create_or_open(
        path,
        class_names=subject.archive.class_names,
        geometry=subject.archive.geometry,
        part_rows=subject.archive.part_rows,
    )
    first = FirstImages(source, images)
    append_segment(archive, first)
    start = time.perf_counter()
    write_part(archive, 0, first)
    store = max((time.perf_counter() - start) / images - decode, 0.0)
    return archive, IngestPrice(decode, store, folder_bytes(path) / images, images)


def _decoding(subject: Subject, source: Source, limit: int, seconds: float) -> float:
    """Seconds per image, once one was read that opened files and loaded libraries."""
    transform = image_transform(subject.archive.geometry)

    def prepare(item: SourceImage) -> None:
        if item.image is not None:
            prepare_image(item.image, transform)

    for item in source.read(0, 1):
        prepare(item)
    count, start = 0, time.perf_counter()
    for item in source.read(0, limit):
        prepare(item)
        count += 1
        if count >= FEW_IMAGES and time.perf_counter() - start >= seconds:
            break
    return (time.perf_counter() - start) / count


def folder_bytes(path: Path) -> int:
    """Size of all files below ``path``."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _near(output: Path) -> Path | None:
    """Nearest folder above ``output`` that is there; None, the system's own, where it cannot be written to."""
    folder = next(parent for parent in output.resolve().parents if parent.is_dir())
    return folder if os.access(folder, os.W_OK) else None
