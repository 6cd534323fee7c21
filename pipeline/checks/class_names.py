"""Whether the class names of an evaluation set are those that an expert was trained on: prompts carry names only."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

BASE_TO_NOVEL = "base-to-novel"
# Ratio of difflib: a plural, a hyphen or a letter; 'mild' against 'severe' before a long common rest lies below.
ALMOST = 0.9

Relation = Literal["same", "reordered", "subset", "novel"]


@dataclass(frozen=True, slots=True)
class NameFinding:
    """How an evaluation set's names relate to a training set's.

    ``relation`` is ``same``, ``reordered`` (same names in another order: no harm, names are what counts), ``subset``
    (all were trained on, ``untrained`` is empty and ``absent`` not) or ``novel`` (``untrained`` were not trained on).
    ``almost`` pairs an untrained name with an absent one of nearly the same spelling. ``suspicious``: deserves a mark.
    """

    training_set: str
    relation: Relation
    untrained: tuple[str, ...]
    absent: tuple[str, ...]
    almost: tuple[tuple[str, str], ...]
    suspicious: bool

    def explanation(self) -> str:
        """One sentence that names what differs."""
        trained = f"what it was trained on ({self.training_set})"
        expected = "" if self.suspicious else ", as base-to-novel sets do"
        novel = [repr(name) for name in self.untrained if name not in dict(self.almost)]
        beyond = f"names classes beyond {trained}{expected}: {', '.join(novel)}"
        if self.almost:
            pairs = ", ".join(f"{name!r} here and {other!r} there" for name, other in self.almost)
            remedy = "spell them alike if they are the same classes"
            return f"names are almost those of {trained}: {pairs}; {remedy}" + (f"; {beyond}" if novel else "")
        if novel:
            return beyond
        if self.relation == "subset":
            return f"names some of the classes of {trained}"
        order = "in another order, which does no harm" if self.relation == "reordered" else "in the same order"
        return f"names the classes of {trained}, {order}"


def compare_class_names(
    names: Sequence[str], trained: Mapping[str, Sequence[str]], condition: str | None
) -> NameFinding | None:
    """Compare a set's ``names`` with the training set of ``trained`` (names by set) that shares most of them.

    Novel names are expected under the condition ``base-to-novel`` and suspicious elsewhere; almost equal spellings
    always are. A training set without names says nothing; None where nothing is known of the training.
    """
    trained = {name: known for name, known in trained.items() if known}
    if not trained:
        return None
    nearest = max(trained, key=lambda name: (len(set(names) & set(trained[name])), _likeness(names, trained[name])))
    untrained = tuple(name for name in names if name not in trained[nearest])
    absent = tuple(name for name in trained[nearest] if name not in names)
    almost = tuple((name, other) for name in untrained for other in absent if _spelling(name, other) >= ALMOST)
    suspicious = bool(almost) or (bool(untrained) and condition != BASE_TO_NOVEL)
    return NameFinding(
        nearest, _relation(names, trained[nearest], untrained, absent), untrained, absent, almost, suspicious
    )


def _relation(
    names: Sequence[str], trained: Sequence[str], untrained: Sequence[str], absent: Sequence[str]
) -> Relation:
    if untrained:
        return "novel"
    if absent:
        return "subset"
    return "same" if list(names) == list(trained) else "reordered"


def _likeness(names: Sequence[str], trained: Sequence[str]) -> float:
    return sum(max(_spelling(name, other) for other in trained) for name in names)


def _spelling(name: str, other: str) -> float:
    first, second = (" ".join(word.casefold().split()) for word in (name, other))
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()
