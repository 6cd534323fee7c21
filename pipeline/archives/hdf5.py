"""Images in one dataset of an HDF5 file, read in ranges: a file of any size needs a few MB of memory."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import AbsentSourceError, SourceError, one_line

READ_BYTES = 4 << 20


class Hdf5Images:
    """The dataset ``name`` of ``path``: uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]; pickles without its open file.

    Raises :class:`SourceError` for a file that is absent, damaged or not in this layout, and for pixels that lie
    outside the file, which its digest would not cover.
    """

    def __init__(self, path: Path, name: str = "images") -> None:
        self.path, self.name = path, name
        self._open_dataset: Any = None
        with self._refusing_damage():
            self._file_bytes = path.stat().st_size
        dataset = self._dataset()
        if dataset.dtype != np.uint8:
            raise SourceError(f"{path}: '{name}' has dtype {dataset.dtype}; convert it to uint8")
        if dataset.shape is None:
            raise SourceError(f"{path}: '{name}' holds no values; fetch the file again")
        shape = tuple(dataset.shape)
        if not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
            raise SourceError(f"{path}: '{name}' has shape {shape}; [N, H, W], [N, H, W, 1] or [N, H, W, 3] is needed")
        self.shape = shape

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open file."""
        return {**self.__dict__, "_open_dataset": None}

    def read(self, positions: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the images at ascending ``positions``, [H, W] or [H, W, 3] each, :data:`READ_BYTES` at a time."""
        block = max(1, READ_BYTES // max(1, math.prod(self.shape[1:])))
        for run in np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1):
            for start in range(0, len(run), block):
                part = run[start : start + block]
                with self._refusing_damage():
                    pixels = self._dataset()[int(part[0]) : int(part[-1]) + 1]
                yield from pixels[..., 0] if self.shape[3:] == (1,) else pixels

    def _dataset(self) -> Any:
        if self._open_dataset is None:
            import h5py

            with self._refusing_damage():
                if self.path.stat().st_size != self._file_bytes:
                    raise SourceError(f"{self.path}: changed since it was listed; start the command again")
                file = h5py.File(self.path, "r")
                dataset = file.get(self.name)
                if not isinstance(dataset, h5py.Dataset):
                    listed = ", ".join(sorted(file)) or "nothing"
                    raise SourceError(f"{self.path}: has no dataset '{self.name}'; it holds {listed}")
                if dataset.is_virtual or dataset.external or dataset.file.filename != file.filename:
                    raise SourceError(f"{self.path}: '{self.name}' lies in other files; write its pixels into this one")
                self._open_dataset = dataset
        return self._open_dataset

    @contextmanager
    def _refusing_damage(self) -> Iterator[None]:
        try:
            yield
        except SourceError:
            raise
        except FileNotFoundError as error:
            raise AbsentSourceError(f"{self.path}: no such file; check the path") from error
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise SourceError(f"{self.path}: damaged or not an HDF5 file ({reason}); fetch it again") from error
