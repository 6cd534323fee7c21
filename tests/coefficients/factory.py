"""Evidence of a generalist and an expert, from two arrays of logits."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.coefficients.evidence import Evidence

Pair = tuple[np.ndarray, np.ndarray]


def pair_evidence(generalist: np.ndarray, expert: np.ndarray, labels: object = None) -> Evidence:
    return Evidence.from_logits({"generalist": generalist, "expert": expert}, labels)


@st.composite
def logit_pairs(draw: st.DrawFn, largest: float = 60.0) -> Pair:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(2, 8)))
    values = hnp.arrays(np.float32, shape, elements=st.floats(-largest, largest, width=32))
    return draw(values), draw(values)


@st.composite
def logit_pairs_in_eighths(draw: st.DrawFn) -> Pair:
    """Logits to which a constant in eighths is added without rounding, also in float32."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(2, 8)))
    values = hnp.arrays(np.int32, shape, elements=st.integers(-320, 320))
    return (draw(values) / 8).astype(np.float32), (draw(values) / 8).astype(np.float32)
