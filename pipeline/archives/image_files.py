"""Image files on disk: listed, digested, and decoded to 8 bits without clipping.

Every image leaves this module in mode L or RGB: Pillow resizes palettes and bitmaps without interpolation, and clips
16-bit pixels at 255 when it converts them.
"""

import hashlib
import io
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.archives.source import describe_defect
from pipeline.errors import SourceError, one_line
from pipeline.store.fingerprints import digest_file

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Named, because other decoders of Pillow start programs.
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
# Of these a file may hold several; a JPEG with further pictures (MPO) shows its first.
PAGED = ("PNG", "TIFF", "WEBP")
TIFF_BITS, TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file as it was when listed: ``path`` POSIX, in its folder; ``size`` in bytes, None where there was none."""

    path: str
    size: int | None


def list_image(folder: Path, path: str) -> ImageFile:
    """List the file ``path`` of ``folder``, present or not.

    :class:`SourceError` when a link leads out of the folder or in a circle, the name is not one that the file system
    takes or is not in UTF-8, or the file cannot be looked at.
    """
    file = folder / path
    try:
        f"{folder.name}/{path}".encode()
        inside = file.resolve().is_relative_to(folder.resolve())
        size = _size(file)
    except UnicodeEncodeError as error:
        raise SourceError(f"{folder}: the name {path!r} is not in UTF-8; rename it") from error
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RuntimeError) as error:
        raise SourceError(f"{folder}: {path!r} cannot be a file's path ({one_line(error)}); mend that") from error
    if not inside:
        raise SourceError(f"{file}: leads out of {folder}; put the file itself there")
    return ImageFile(path, size)


def digest_images(folder: Path, files: Iterable[ImageFile]) -> str:
    """SHA-256 over path, size and content of all files in their order: reads every byte once, one block at a time."""
    digest = hashlib.sha256()
    for file in files:
        try:
            content = None if file.size is None else digest_file(folder / file.path)
        except OSError as error:
            raise unreadable(folder / file.path, error) from error
        digest.update(f"{file.path}\0{file.size}\0{content}\n".encode())
    return digest.hexdigest()


def load_image(folder: Path, file: ImageFile) -> Image.Image | str:
    """Decode a listed file to mode L or RGB, or say why it cannot be used.

    :class:`SourceError` when the file cannot be read, or is not the one that was listed.
    """
    if file.size is None:
        return "no such file"
    try:
        content = (folder / file.path).read_bytes()
    except OSError as error:
        raise unreadable(folder / file.path, error) from error
    if len(content) != file.size:
        raise SourceError(f"{folder / file.path}: changed since it was listed; start the command again")
    return decode_image(content)


def decode_image(content: bytes) -> Image.Image | str:
    """Decode BMP, JPEG, PNG, TIFF or WebP to mode L or RGB, or say why that cannot be done.

    16-bit grey is scaled by its full range (TIFF says how many bits it uses). Transparency is dropped, and an
    orientation in EXIF is not applied: both as open_clip's own preprocessing has it.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pages = getattr(image, "n_frames", 1) if image.format in PAGED else 1
            if pages > 1:
                return f"holds {pages} images; save each as a file of its own"
            image.load()
            return _in_8_bits(image)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return f"is not an image ({', '.join(FORMATS)})"
    except Exception as error:  # noqa: BLE001 - decoders raise anything, and one bad image never stops the night
        return describe_defect(error)


def _in_8_bits(image: Image.Image) -> Image.Image | str:
    if image.mode in {"I", "F"}:
        return f"has pixels of mode {image.mode}, which have no full range; save it with 8 or 16 bits"
    if image.mode.startswith("I;16"):
        return _scaled(image)
    return image.copy() if image.mode == "L" else image.convert("L" if image.mode == "1" else "RGB")


def _scaled(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TIFF_BITS, (16,))[0]
    full = (1 << bits) - 1
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + full // 2) // full).astype(np.uint8)
    return Image.fromarray(255 - grey if tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO else grey)


def _size(file: Path) -> int | None:
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def unreadable(path: Path, error: OSError) -> SourceError:
    """The error for a file or folder that the system does not let be read."""
    return SourceError(f"{path}: cannot be read ({error.strerror or one_line(error)}); mend that and run again")
