"""Bytes of ``.npy`` files, true and false."""

import io

import numpy as np


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def announcing(shape: tuple[int, ...], values: bytes) -> bytes:
    """A header of bytes (uint8) in ``shape``, whatever ``values`` follow it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + values
