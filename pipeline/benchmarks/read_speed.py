"""Reading shuffled images of an archive against decoding the same compressed bytes in memory, and codecs compared."""

import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np
import zarr
from numcodecs import LZ4, Blosc, Zstd
from numpy.typing import NDArray

from pipeline.archives.medimeta import MedIMetaSource
from pipeline.archives.pixels import ZSTD_LEVEL, PixelStore, choose_chunk_rows, choose_shard_rows
from pipeline.archives.source import Source
from pipeline.archives.synthetic import SyntheticSource
from pipeline.benchmarks.bars import Bar, chart
from pipeline.benchmarks.requirements import READS_TO_DECODING
from pipeline.benchmarks.turns import Ratio, median_ratio, take_turns
from pipeline.geometry import Geometry, image_transform, prepare_image

ROWS_PER_READ = 256
PART_ROWS = 8192
DATA_SET = "pbc"

type Pixels = NDArray[np.uint8]
type Rows = NDArray[np.int64]


class _Codec(Protocol):
    def encode(self, buf: Pixels) -> bytes: ...

    def decode(self, buf: Any, out: Pixels | None = None) -> Any: ...


@dataclass(frozen=True, slots=True)
class _Checked:
    """A codec without a checksum of its own, and a CRC-32C before its bytes, as zarr would add one."""

    codec: _Codec

    def encode(self, buf: Pixels) -> bytes:
        data = bytes(self.codec.encode(buf))
        return int(google_crc32c.value(data)).to_bytes(4, "little") + data

    def decode(self, buf: bytes, out: Pixels | None = None) -> Any:
        data = np.frombuffer(buf, dtype=np.uint8)[4:]
        if google_crc32c.value(data) != int.from_bytes(buf[:4], "little"):
            raise ValueError("checksums differ")
        return self.codec.decode(data, out)


CODECS: Mapping[str, _Codec] = {
    **{f"zstd {level}": Zstd(level=level, checksum=True) for level in (1, 3, 5, 9)},
    "lz4, crc32c": _Checked(LZ4()),
    "blosc lz4, crc32c": _Checked(Blosc(cname="lz4", clevel=5, shuffle=Blosc.BITSHUFFLE)),
    "blosc zstd 3, crc32c": _Checked(Blosc(cname="zstd", clevel=3, shuffle=Blosc.NOSHUFFLE)),
}
CHOSEN = f"zstd {ZSTD_LEVEL}"


def read_speed(images: int, size: int, pairs: int, threads: int, data: Path | None, folder: Path) -> dict[str, Any]:
    """Images per second of three ways to ``images`` images of ``size`` x ``size``, each once per turn, shuffled.

    ``archive`` is what workers call, ``zarr`` is zarr's own indexing of the same files, and ``decoding`` decodes the
    same compressed bytes, held in memory, into a fresh array: 256 images at a time, in the order wanted. Every one of
    ``threads`` threads has its share of the images. Files lie in ``folder`` and in the page cache. The images are the
    cells of MedIMeta's PBC in ``data`` if they are there, over and over, else procedural ones. ``codecs`` gives bytes
    per image and decoded images per second (in turns too) of codecs that notice a flipped byte.
    """
    source, described = _open_source(size, data)
    pixels = _pixels(source, images, size)
    store = _written(pixels, folder)
    frames = _encoded(CODECS[CHOSEN], pixels, store.chunk_rows)
    array = zarr.open_array(store.path, mode="r")
    selected: Any = array.oindex
    ways: dict[str, Callable[[Rows], object]] = {
        "archive": store.read,
        "zarr": lambda rows: selected[np.unique(rows)],
        "decoding": lambda rows: _decode(CODECS[CHOSEN], frames, rows, store),
    }
    orders = np.random.default_rng(0)
    shuffled = [orders.permutation(images) for _ in range(pairs + 1)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = take_turns({name: _in_threads(pool, threads, way, shuffled) for name, way in ways.items()}, pairs)
    ratios = {name: median_ratio(seconds["decoding"], seconds[name]) for name in ("archive", "zarr")}
    result: dict[str, Any] = {
        "images": images,
        "size": size,
        "source": described,
        "pairs": pairs,
        "threads": threads,
        "codec": CHOSEN,
        "images_per_second": {name: images / statistics.median(values) for name, values in seconds.items()},
        "ratios": {name: ratio.as_json() for name, ratio in ratios.items()},
        "required": READS_TO_DECODING.bound,
        "codecs": _compare_codecs(pixels[: ROWS_PER_READ * 2], store, pairs),
    }
    shutil.rmtree(store.path)
    bars = [
        Bar.of_ratio("archive", ratios["archive"].as_json(), READS_TO_DECODING),
        Bar.of_ratio("zarr's own indexing", ratios["zarr"].as_json()),
    ]
    result |= chart(f"Shuffled reads, {size}x{size}", "throughput over that of decoding in memory", bars)
    result["text"] = _text(result, ratios)
    return result


def _open_source(size: int, data: Path | None) -> tuple[Source, str]:
    cells = data / "medimeta" / DATA_SET if data else None
    if cells is not None and (cells / "info.yaml").is_file():
        return MedIMetaSource(cells, "test"), f"cells of MedIMeta's {DATA_SET}"
    return SyntheticSource(ROWS_PER_READ * 2, 0, size=size), "procedural cells"


def _pixels(source: Source, images: int, size: int) -> Pixels:
    transform = image_transform(Geometry(size, size))
    listed = (item.image for item in source.read(0, min(images, len(source))) if item.image is not None)
    distinct = [prepare_image(image, transform) for image in listed]
    return np.stack([*islice(cycle(distinct), images)])


def _written(pixels: Pixels, folder: Path) -> PixelStore:
    """The images, laid out as an archive with parts of the usual size."""
    image_bytes = pixels[0].nbytes
    chunk_rows = choose_chunk_rows(PART_ROWS, image_bytes)
    shard_rows = choose_shard_rows(PART_ROWS, chunk_rows, image_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "reads.zarr"
    shutil.rmtree(path, ignore_errors=True)
    store = PixelStore(path, pixels.shape[1:], chunk_rows, shard_rows)
    pieces = [*_pieces(pixels, shard_rows)]
    store.resize(len(pieces) * shard_rows)
    for number, piece in enumerate(pieces):
        store.write_shard(number * shard_rows, piece)
    return store


def _pieces(pixels: Pixels, rows: int) -> Iterator[Pixels]:
    """Pieces of ``rows`` images each, the last one filled up with zeros."""
    for start in range(0, len(pixels), rows):
        piece = pixels[start : start + rows]
        missing = np.zeros((rows - len(piece), *pixels.shape[1:]), dtype=np.uint8)
        yield np.concatenate([piece, missing]) if len(missing) else np.ascontiguousarray(piece)


def _encoded(codec: _Codec, pixels: Pixels, chunk_rows: int) -> list[bytes]:
    return [bytes(codec.encode(piece)) for piece in _pieces(pixels, chunk_rows)]


def _decode(codec: _Codec, frames: Sequence[bytes], rows: Rows, store: PixelStore) -> Pixels:
    """The rows' images in their order, each of their chunks decoded once."""
    out = np.empty((len(rows), *store.image_shape), dtype=np.uint8)
    if store.chunk_rows == 1:
        for position, row in enumerate(rows.tolist()):
            codec.decode(frames[row], out[position].reshape(-1))
        return out
    chunks = rows // store.chunk_rows
    for chunk in np.unique(chunks).tolist():
        decoded = np.empty((store.chunk_rows, *store.image_shape), dtype=np.uint8)
        codec.decode(frames[chunk], decoded.reshape(-1))
        out[chunks == chunk] = decoded[rows[chunks == chunk] % store.chunk_rows]
    return out


def _in_threads(
    pool: ThreadPoolExecutor, threads: int, way: Callable[[Rows], object], orders: Sequence[Rows]
) -> Callable[[int], None]:
    """All rows of a turn, in pieces, the pieces dealt to the threads."""

    def pieces(rows: Rows) -> Iterator[Rows]:
        return (rows[start : start + ROWS_PER_READ] for start in range(0, len(rows), ROWS_PER_READ))

    def work(rows: Rows) -> None:
        for piece in pieces(rows):
            way(piece)

    return lambda turn: [*pool.map(work, np.array_split(orders[turn], threads))].clear()


def _compare_codecs(pixels: Pixels, store: PixelStore, pairs: int) -> dict[str, dict[str, float]]:
    encoded = {name: _encoded(codec, pixels, store.chunk_rows) for name, codec in CODECS.items()}
    rows = np.arange(len(pixels))

    def way(name: str) -> Callable[[int], object]:
        return lambda _: _decode(CODECS[name], encoded[name], rows, store)

    seconds = take_turns({name: way(name) for name in CODECS}, pairs)
    return {
        name: {
            "bytes_per_image": sum(map(len, frames)) / len(rows),
            "images_per_second": len(rows) / statistics.median(seconds[name]),
        }
        for name, frames in encoded.items()
    }


def _text(result: Mapping[str, Any], ratios: Mapping[str, Ratio]) -> str:
    size, rates = result["size"], result["images_per_second"]
    lines = [
        f"{result['images']:,} {result['source']}, {size}x{size}, shuffled, {result['threads']} threads, "
        f"{result['pairs']} turns, {result['codec']}",
        f"  decoding in memory {rates['decoding']:9,.0f} images/s",
        f"  archive            {rates['archive']:9,.0f} images/s   {ratios['archive'].text()} of it; "
        f"{READS_TO_DECODING.text(ratios['archive'].median)}",
        f"  zarr's indexing    {rates['zarr']:9,.0f} images/s   {ratios['zarr'].text()} of it",
        "  codecs:",
    ]
    lines += [
        f"    {name:<21}{row['bytes_per_image']:10,.0f} bytes an image, {row['images_per_second']:9,.0f} images/s"
        for name, row in result["codecs"].items()
    ]
    return "\n".join(lines)
