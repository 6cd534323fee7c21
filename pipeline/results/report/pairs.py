"""What generalist and expert say about each sample, read from evidence part by part, with the figures drawn of it.

Shapes: N samples, C classes. Figures are float32, which is all that a picture and a rank correlation need.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.coefficients.divergence import log_softmax
from pipeline.coefficients.evidence import EXPERT, GENERALIST, NO_LABEL, Evidence
from pipeline.coefficients.rules import entropy_ratio, x_entropy_ratio
from pipeline.results.layout import parts
from pipeline.store.tables import read_table

LOGITS = (f"logits_{GENERALIST}", f"logits_{EXPERT}")
QUADRANTS = ("TrueTrue", "TrueFalse", "FalseTrue", "FalseFalse")
"""Generalist right?, expert right?"""
AGREEMENT = ("same answer", "different answers")


@dataclass(frozen=True, slots=True)
class PairSamples:
    """Figures of the samples of one evaluation set, [N] each.

    ``js`` in nats; ``entropy_ratio`` H_ft/(H_pt+H_ft) and ``x_entropy_ratio`` ℓ_ft/(ℓ_pt+ℓ_ft) (T³ Eq. 3 and 4), the
    latter None without labels; ``confidence`` (max p_pt + max p_ft)/2; ``group`` the place in ``groups``, which are the
    four quadrants where there are labels, else whether the two agree. ``unlabelled`` samples beside labelled ones are
    counted and left out.
    """

    js: NDArray[np.float32]
    entropy_ratio: NDArray[np.float32]
    x_entropy_ratio: NDArray[np.float32] | None
    confidence: NDArray[np.float32]
    group: NDArray[np.int8]
    groups: tuple[str, ...]
    unlabelled: int

    def __len__(self) -> int:
        return len(self.js)


def has_pair(folder: Path) -> bool:
    """Whether the evidence in ``folder`` holds the logits of a generalist and an expert."""
    first = next(iter(parts(folder).values()), None)
    return first is not None and {*LOGITS, "label"} <= set(pq.read_schema(first).names)


def read_pair(folder: Path) -> PairSamples:
    """Read the evidence parts in ``folder``, one in memory at a time."""
    paths = list(parts(folder).values())
    labels = [read_labels(path) for path in paths]
    labelled = any((found != NO_LABEL).any() for found in labels)
    pieces = [_of_part(path, found, labelled=labelled) for path, found in zip(paths, labels, strict=True)]
    pieces = [piece for piece in pieces if len(piece)] or pieces[:1]
    ratios = [piece.x_entropy_ratio for piece in pieces if piece.x_entropy_ratio is not None]
    return PairSamples(
        js=np.concatenate([piece.js for piece in pieces]),
        entropy_ratio=np.concatenate([piece.entropy_ratio for piece in pieces]),
        x_entropy_ratio=np.concatenate(ratios) if labelled else None,
        confidence=np.concatenate([piece.confidence for piece in pieces]),
        group=np.concatenate([piece.group for piece in pieces]),
        groups=QUADRANTS if labelled else AGREEMENT,
        unlabelled=sum(int((found == NO_LABEL).sum()) for found in labels) if labelled else 0,
    )


def read_labels(path: Path) -> NDArray[np.int64]:
    """Labels [N] of one part, -1 where there is none."""
    column = read_table(path, ["label"])["label"].fill_null(NO_LABEL)
    labels: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    return labels


def read_logits(path: Path, names: Sequence[str]) -> list[NDArray[np.float32]]:
    """Logits [N, C] of one part, for each column of ``names``."""
    table = read_table(path, names)
    columns = [table[name].combine_chunks() for name in names]
    return [
        column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
        for column in columns
    ]


def _of_part(path: Path, labels: NDArray[np.int64], *, labelled: bool) -> PairSamples:
    kept = labels != NO_LABEL if labelled else np.ones(len(labels), bool)
    generalist, expert = (logits[kept] for logits in read_logits(path, LOGITS))
    known = labels[kept] if labelled else None
    evidence = Evidence.from_logits({GENERALIST: generalist, EXPERT: expert}, known)
    assert evidence.js is not None
    answers = [logits.argmax(axis=1) for logits in (generalist, expert)]
    wrong = [answers[0] != answers[1]] if known is None else [answer != known for answer in answers]
    tops = [np.exp(log_softmax(logits).max(axis=1)) for logits in (generalist, expert)]
    return PairSamples(
        js=evidence.js.astype(np.float32),
        entropy_ratio=entropy_ratio(evidence).lam,
        x_entropy_ratio=None if known is None else x_entropy_ratio(evidence).lam,
        confidence=((tops[0] + tops[1]) / 2).astype(np.float32),
        group=(wrong[0] if known is None else 2 * wrong[0] + wrong[1]).astype(np.int8),
        groups=AGREEMENT if known is None else QUADRANTS,
        unlabelled=0,
    )
