"""Headers of NumPy's ``.npy`` format, parsed before any value is read: what they announce can be checked first."""

import math
import os
import tokenize
from dataclasses import dataclass
from typing import IO, Any

import numpy as np


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What the first bytes of an ``.npy`` file say; ``data_offset`` is where its values begin."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    data_offset: int

    def fits(self, size: int) -> bool:
        """Whether a file of ``size`` bytes holds exactly the values that this announces."""
        whole = all(length >= 0 for length in self.shape)
        return whole and size == self.data_offset + math.prod(self.shape) * self.dtype.itemsize


def read_array_header(stream: IO[bytes]) -> ArrayHeader:
    """Read the header at the start of ``stream``; ValueError or EOFError when there is none."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"unknown .npy version {version}")
    try:
        shape, fortran_order, dtype = readers[version](stream)
    except tokenize.TokenError as error:
        raise ValueError("its header cannot be parsed") from error
    return ArrayHeader(shape, fortran_order, dtype, stream.seek(0, os.SEEK_CUR))
