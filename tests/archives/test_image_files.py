import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.archives.image_files import decode_image, digest_images, list_image, load_image
from pipeline.errors import SourceError

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def decoded(content: bytes) -> Image.Image:
    image = decode_image(content)
    assert isinstance(image, Image.Image), image
    return image


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_by_their_full_range(kind: str) -> None:
    image = decoded(encoded(Image.fromarray(RAMP), kind))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), np.rint(RAMP / 65535 * 255))


def test_big_endian_16_bits_are_scaled_alike() -> None:
    content = encoded(Image.frombytes("I;16B", (8, 8), RAMP.astype(">u2").tobytes()), "TIFF")
    np.testing.assert_array_equal(np.asarray(decoded(content)), np.rint(RAMP / 65535 * 255))


def test_16_bits_in_which_white_is_zero_are_turned_over() -> None:
    content = encoded(Image.fromarray(RAMP), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(np.asarray(decoded(content)), 255 - np.rint(RAMP / 65535 * 255))


def test_12_bits_are_scaled_by_12_bits() -> None:
    values = np.array([[0, 1000], [2048, 4095]])
    pairs = [int(a) << 12 | int(b) for a, b in values]
    packed = b"".join(pair.to_bytes(3, "big") for pair in pairs)
    tags = {256: (4, 2), 257: (4, 2), 258: (3, 12), 259: (3, 1), 262: (3, 1), 273: (4, 200), 277: (3, 1)}
    tags |= {278: (4, 2), 279: (4, len(packed))}
    entries = b"".join(
        number.to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for number, (kind, value) in sorted(tags.items())
    )
    head = b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little") + entries + bytes(4)
    image = decoded(head.ljust(200, b"\0") + packed)
    np.testing.assert_array_equal(np.asarray(image), np.rint(values / 4095 * 255))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_8_bits_come_through_unchanged(kind: str, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    settings = {"lossless": True} if kind == "WEBP" else {}
    found = decoded(encoded(image, kind, **settings))
    np.testing.assert_array_equal(np.asarray(found.convert("RGB")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "CMYK"])
def test_other_modes_become_grey_or_colour(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    found = decoded(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert found.mode == ("L" if mode == "1" else "RGB")
    np.testing.assert_array_equal(np.asarray(found.convert("RGB")), np.asarray(image.convert("RGB")))


def test_what_has_no_full_range_or_no_single_image_is_refused_with_its_reason() -> None:
    real = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    grey = Image.new("L", (8, 8))
    assert "mode F" in str(decode_image(encoded(real, "TIFF")))
    assert "mode I" in str(decode_image(encoded(grey.convert("I"), "TIFF")))
    pages = encoded(grey, "TIFF", save_all=True, append_images=[grey, grey])
    assert decode_image(pages) == "holds 3 images; save each as a file of its own"


def test_damaged_and_foreign_files_are_refused_with_a_reason_that_names_no_address() -> None:
    content = encoded(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), "PNG")
    assert "OSError" in str(decode_image(content[: len(content) // 2]))
    assert decode_image(b"%!PS-Adobe-3.0 EPSF-3.0") == "is not an image (BMP, JPEG, PNG, TIFF, WEBP)"
    assert decode_image(b"") == decode_image(b"text")


def test_files_are_digested_by_path_and_content(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())

    def digest(*names: str) -> str:
        return digest_images(tmp_path, [list_image(tmp_path, name) for name in names])

    before = digest("a.png", "b.png")
    assert digest("a.png", "b.png") == before
    assert len({before, digest("b.png", "a.png"), digest("a.png"), digest("a.png", "c.png")}) == 4
    (tmp_path / "b.png").write_bytes(b"a.png")
    assert digest("a.png", "b.png") != before


def test_a_file_that_changed_after_listing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("L", (4, 4)), "PNG"))
    listed = list_image(tmp_path, "a.png")
    path.write_bytes(b"shorter")
    with pytest.raises(SourceError, match="changed since it was listed"):
        load_image(tmp_path, listed)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        load_image(tmp_path, listed)
