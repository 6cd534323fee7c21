"""The table of methods: a rule, a grouping and a way to combine weights, with what each costs and where it is from."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

GroupingKind = Literal["arrival", "lambda", "sample"]
Combination = Literal["generalist", "expert", "merge"]


@dataclass(frozen=True, slots=True)
class Method:
    """A row of a results table.

    ``combination`` is ``merge`` for a model merged per batch, else the plain model whose evidence is the answer.
    ``grouping`` ``sample`` gives every row its own λ: rows sorted by λ, one image per forward call.
    """

    name: str
    combination: Combination
    grouping: GroupingKind | None
    cost: str
    source: str


_ROWS = (
    Method("generalist", "generalist", None, "0 (read from evidence)", "the pretrained model"),
    Method("expert", "expert", None, "0 (read from evidence)", "the fine-tuned model"),
    Method("t3", "merge", "sample", "O(N)", "T³ Eq. 10-11, each sample by its own λ (arXiv 2510.27265)"),
    Method("t3-batch", "merge", "arrival", "O(1B)", "T³_B, Eq. 12-13: mean λ of consecutive rows"),
    Method("t3-lambda", "merge", "lambda", "O(1B)", "T³_B over rows sorted by λ inside a window (ours)"),
)

METHODS = MappingProxyType({method.name: method for method in _ROWS})
