"""A part of a set in the whole set's class proportions."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.archives.source import Source

NO_LABEL = -1


def stratified_choice(labels: NDArray[np.int64], images: int, seed: int) -> NDArray[np.int64]:
    """Positions [``images``], ascending, of a part of ``labels`` [N] with its class proportions.

    Each class gets its proportional share by largest remainder (ties to the smaller label) and at least one image: a
    class that got none takes one from the largest share. Images are drawn without replacement; the same labels, count
    and seed always give the same ones. A label outside the classes is a class like any other, and so is
    :data:`NO_LABEL`. ValueError when more images are asked for than there are, or fewer than classes.
    """
    if images > len(labels):
        raise ValueError(f"stratified.images is {images:,}, but there are only {len(labels):,}; ask for fewer")
    classes, counts = np.unique(labels, return_counts=True)
    if images < len(classes):
        raise ValueError(f"stratified.images is {images:,}, fewer than the {len(classes)} classes; ask for more")
    generator = np.random.default_rng(seed)
    chosen = [
        generator.choice(np.flatnonzero(labels == label), size=share, replace=False)
        for label, share in zip(classes, _shares(counts, images), strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def labels_of(source: Source) -> NDArray[np.int64]:
    """Label of every image of ``source`` [N], :data:`NO_LABEL` where it has none; reads all images."""
    return np.fromiter(_labels(source), dtype=np.int64, count=len(source))


def _labels(source: Source) -> Iterator[int]:
    for image in source.read(0, len(source)):
        yield NO_LABEL if image.label is None else image.label


def _shares(counts: NDArray[np.int64], images: int) -> NDArray[np.int64]:
    shares, remainders = np.divmod(counts * images, counts.sum())
    short = images - int(shares.sum())
    shares[np.argsort(-remainders, kind="stable")[:short]] += 1
    for empty in np.flatnonzero(shares == 0):
        shares[np.argmax(shares)] -= 1
        shares[empty] = 1
    return shares
