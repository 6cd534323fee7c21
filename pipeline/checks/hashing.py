"""What an image is known by: its exact content, how it looks, and a thumbnail to tell look-alikes from copies.

Content is the SHA-256 of the prepared uint8 pixels, as archives record it. Looks are the 64 bits of
:func:`imagehash.phash`: the signs of the low frequencies of a 32 x 32 luminance image about their median.
"""

import hashlib
from dataclasses import dataclass, replace

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
HASH_BITS = 64
NO_CLUSTER = 0


@dataclass(frozen=True, slots=True)
class HashedImages:
    """Images of one set, 56 bytes each, in ascending order of ``addresses`` (int64 [N]).

    ``contents`` (S32 [N]) are SHA-256 digests, ``looks`` (uint64 [N]) perceptual hashes, ``clusters`` (uint64 [N])
    hashed cluster ids: two images of one cluster, such as a scan and its corrupted version, are no duplicates of one
    another; :data:`NO_CLUSTER` is none. ``thumbnail_sum`` (int64 [32, 32, 3]) is the sum of ``summed`` thumbnails: of
    the whole set, also where this is a selection from it.
    """

    addresses: NDArray[np.int64]
    contents: NDArray[np.bytes_]
    looks: NDArray[np.uint64]
    clusters: NDArray[np.uint64]
    thumbnail_sum: NDArray[np.int64]
    summed: int

    def __len__(self) -> int:
        return len(self.addresses)

    def select(self, positions: NDArray[np.int64]) -> "HashedImages":
        """The images at ascending ``positions``."""
        return replace(
            self,
            addresses=self.addresses[positions],
            contents=self.contents[positions],
            looks=self.looks[positions],
            clusters=self.clusters[positions],
        )


class Hasher:
    """Collects the hashes of a set, image by image."""

    def __init__(self) -> None:
        self._addresses: list[int] = []
        self._contents: list[bytes] = []
        self._looks: list[int] = []
        self._clusters: list[int] = []
        self._sum = np.zeros((SIDE, SIDE, 3), dtype=np.int64)

    def add(self, address: int, pixels: NDArray[np.uint8], *, cluster: str | None = None) -> None:
        """Add one prepared image, uint8 [H, W, 3]; addresses must ascend."""
        assert not self._addresses or address > self._addresses[-1]
        self._addresses.append(address)
        self._contents.append(hashlib.sha256(pixels.tobytes()).digest())
        self._looks.append(perceptual_hash(pixels))
        self._clusters.append(NO_CLUSTER if cluster is None else hash_cluster(cluster))
        self._sum += thumbnail(pixels)

    def finish(self) -> HashedImages:
        """The set of all images that were added."""
        return HashedImages(
            np.array(self._addresses, dtype=np.int64),
            np.array(self._contents, dtype="S32"),
            np.array(self._looks, dtype=np.uint64),
            np.array(self._clusters, dtype=np.uint64),
            self._sum,
            len(self._addresses),
        )


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """The 64 bits of imagehash's ``phash`` of an image, row by row, the first bit the highest."""
    bits = imagehash.phash(Image.fromarray(pixels)).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image at 32 x 32: uint8 [32, 32, 3]."""
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def hash_cluster(name: str) -> int:
    """A cluster's id as 64 bits, never :data:`NO_CLUSTER`."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") or 1
