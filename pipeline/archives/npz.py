"""Source: a NumPy archive in MedMNIST's layout, streamed so that a released 10 GB file needs a few MB of memory.

``{split}_images`` is uint8 [N, H, W] or [N, H, W, 3]; ``{split}_labels`` is an integer array [N] or [N, 1]. Nothing is
ever unpickled: array headers are parsed, and an object array is refused.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.archives.npy import ArrayHeader, read_array_header
from pipeline.archives.source import JSON, SourceImage
from pipeline.errors import AbsentSourceError, SourceError
from pipeline.store.fingerprints import digest_file

READ_BYTES = 4 << 20
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError, RuntimeError)


class NpzSource:
    """One split of an ``.npz`` file. Not safe for use from two threads at once; pickles without its open file.

    The stream is kept between calls of :meth:`read`: ranges read in ascending order decompress the file once, and a
    reader that goes from the first image to the last has had every byte checked against the file's own CRC.
    ``group``, where given, names the set in group ids: its files of several sizes hold the same images. Raises
    :class:`SourceError` for a file that is absent, damaged, or not in the layout.
    """

    def __init__(self, path: Path, split: str, class_names: Sequence[str], *, group: str | None = None) -> None:
        self.path = path
        self._group = group
        self.split = split
        self.class_names = tuple(class_names)
        self._sha256: str | None = None
        self._stream: IO[bytes] | None = None
        with self._refusing_damage():
            self._file_bytes = path.stat().st_size
            with zipfile.ZipFile(path) as archive:
                self._check_members(archive.namelist())
                self._header = _image_header(path, archive, f"{split}_images.npy")
                self._labels = _read_labels(path, archive, f"{split}_labels.npy")
        if len(self._labels) != len(self):
            counts = f"{len(self)} images but {len(self._labels)} labels"
            raise SourceError(f"{path}: split {split!r} has {counts}; write the file again")

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Label of every image as the file has it, [N]."""
        return self._labels

    @property
    def identity(self) -> dict[str, JSON]:
        """Kind, file name, split and the file's SHA-256 (computed on first use, then kept)."""
        if self._sha256 is None:
            self._sha256 = digest_file(self.path)
        return {"kind": "npz", "file": self.path.name, "split": self.split, "sha256": self._sha256}

    def __len__(self) -> int:
        return self._header.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open stream, so that a worker neither hashes the file nor reads its labels again."""
        return {**self.__dict__, "_stream": None}

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        """Yield images of the range, :data:`READ_BYTES` at a time."""
        assert 0 <= start <= stop <= len(self)
        block = max(1, READ_BYTES // math.prod(self._header.shape[1:]))
        for first in range(start, stop, block):
            pixels = self._read_pixels(first, min(first + block, stop))
            for offset, image in enumerate(pixels):
                yield self._source_image(first + offset, image)

    def _source_image(self, index: int, pixels: npt.NDArray[np.uint8]) -> SourceImage:
        label = int(self._labels[index])
        known = 0 <= label < len(self.class_names)
        return SourceImage(
            index=index,
            sample_id=f"{self.path.stem}/{self.split}/{index}",
            label=label if known else None,
            group_id=None if self._group is None else f"{self._group}/{self.split}/{index}",
            source=self.path.name,
            image=Image.fromarray(pixels) if known else None,
            problem=None if known else f"label {label} is outside the {len(self.class_names)} classes",
        )

    def _read_pixels(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        image_shape = self._header.shape[1:]
        image_bytes = math.prod(image_shape)
        wanted = (stop - start) * image_bytes
        with self._refusing_damage():
            stream = self._stream or self._open_stream()
            _advance(stream, self._header.data_offset + start * image_bytes)
            data = stream.read(wanted)
            if len(data) != wanted:
                raise EOFError(f"images {start} to {stop - 1} are cut short")
        return np.frombuffer(data, dtype=np.uint8).reshape(stop - start, *image_shape)

    def _open_stream(self) -> IO[bytes]:
        if self.path.stat().st_size != self._file_bytes:
            raise SourceError(f"{self.path}: changed since it was listed; start the command again")
        with zipfile.ZipFile(self.path) as archive:
            self._stream = archive.open(f"{self.split}_images.npy")
        return self._stream

    def _check_members(self, members: Sequence[str]) -> None:
        present = sorted(name.removesuffix("_images.npy") for name in members if name.endswith("_images.npy"))
        if self.split not in present:
            listed = ", ".join(present) or "none"
            raise SourceError(f"{self.path}: has no split {self.split!r}; splits in this file: {listed}")
        if f"{self.split}_labels.npy" not in members:
            raise SourceError(f"{self.path}: has no '{self.split}_labels'; add them to the file")

    @contextmanager
    def _refusing_damage(self) -> Iterator[None]:
        try:
            yield
        except SourceError:
            raise
        except FileNotFoundError as error:
            raise AbsentSourceError(f"{self.path}: no such file; check the path and 'data_root'") from error
        except DAMAGE as error:
            if self._stream is not None:
                self._stream.close()
                self._stream = None
            reason = f"{type(error).__name__}: {error}"
            raise SourceError(f"{self.path}: damaged or not an .npz file ({reason}); fetch it again") from error


def _advance(stream: IO[bytes], target: int) -> None:
    """Go to ``target``; short gaps are read, because a seek ends zipfile's CRC check of an uncompressed member."""
    gap = target - stream.tell()
    if 0 <= gap <= READ_BYTES:
        stream.read(gap)
    else:
        stream.seek(target)


def _image_header(path: Path, archive: zipfile.ZipFile, member: str) -> ArrayHeader:
    name = member.removesuffix(".npy")
    with archive.open(member) as stream:
        header = read_array_header(stream)
    if header.dtype != np.uint8:
        raise SourceError(f"{path}: '{name}' has dtype {header.dtype}; convert it to uint8")
    if header.fortran_order:
        raise SourceError(f"{path}: '{name}' is in Fortran order; save it with numpy.ascontiguousarray")
    if not (len(header.shape) == 3 or (len(header.shape) == 4 and header.shape[3] == 3)):
        raise SourceError(f"{path}: '{name}' has shape {header.shape}; [N, H, W] or [N, H, W, 3] is needed")
    if math.prod(header.shape) == 0:
        raise SourceError(f"{path}: '{name}' has shape {header.shape}: it is empty; choose another split")
    _require_size(path, archive, member, header)
    return header


def _read_labels(path: Path, archive: zipfile.ZipFile, member: str) -> npt.NDArray[np.int64]:
    name = member.removesuffix(".npy")
    with archive.open(member) as stream:
        header = read_array_header(stream)
    if len(header.shape) > 1 and math.prod(header.shape[1:]) > 1:
        raise SourceError(f"{path}: '{name}' has shape {header.shape}: multi-label sets are not supported")
    if not np.issubdtype(header.dtype, np.integer):
        raise SourceError(f"{path}: '{name}' has dtype {header.dtype}; integer class indices are needed")
    _require_size(path, archive, member, header)
    with archive.open(member) as stream:
        labels = np.lib.format.read_array(stream, allow_pickle=False)
    return np.asarray(labels, dtype=np.int64).reshape(-1)


def _require_size(path: Path, archive: zipfile.ZipFile, member: str, header: ArrayHeader) -> None:
    if not header.fits(archive.getinfo(member).file_size):
        name = member.removesuffix(".npy")
        raise SourceError(f"{path}: '{name}' does not hold the {header.shape} values it announces; fetch it again")
