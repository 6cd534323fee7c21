"""What the codecs give back is held against the images, and the three ways read the same ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.benchmarks.read_speed import CODECS, read_speed


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_under_comparison_gives_back_what_went_in_and_notices_a_flipped_byte(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 40, 3000, dtype=np.uint8)
    frame, out = bytes(CODECS[name].encode(pixels)), np.empty_like(pixels)
    CODECS[name].decode(frame, out)
    np.testing.assert_array_equal(out, pixels)
    for position in range(0, len(frame), 7):
        damaged = bytearray(frame)
        damaged[position] ^= 1
        with pytest.raises((ValueError, RuntimeError)):
            CODECS[name].decode(bytes(damaged), out)


@pytest.mark.parametrize(("images", "size"), [(300, 64), (24, 224)])
def test_ratios_are_of_throughput_and_the_scratch_archive_is_gone(tmp_path: Path, images: int, size: int) -> None:
    result = read_speed(images, size, 3, 2, None, tmp_path)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["source"] == "procedural cells"
    assert list(result["images_per_second"]) == ["archive", "zarr", "decoding"]
    for name, ratio in result["ratios"].items():
        assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
        assert result["images_per_second"][name] > 0.001
    assert all(0 < row["bytes_per_image"] < 1.1 * size * size * 3 for row in result["codecs"].values())
    assert "at least 0.7" in result["text"]
    assert not any(tmp_path.iterdir())
