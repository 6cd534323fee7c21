"""Who was trained on what: from the manifest, from further manifests that made its models, and from checkpoints' cards.

What no manifest describes stays unknown, by name: a check that cannot see images never calls a set clean.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.manifest.images import EvaluationSet
from pipeline.manifest.schema import Manifest, Training
from pipeline.models.publications import read_card
from pipeline.references import is_file_reference

RANDOM = "random"
REMEDY = "name the manifest that trained it with --training"


@dataclass(frozen=True, slots=True)
class Use:
    """One set that a model was trained on (``training``) or its best epoch chosen by (``validation``)."""

    item: EvaluationSet
    role: str
    data_root: str | None


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is known of one model's own training; what it started from is a lineage of its own, named ``init``.

    ``card_sets`` are the training sets that the checkpoint's card lists; ``unknown`` says why images are not known.
    """

    model: str
    init: str | None
    uses: tuple[Use, ...]
    card_sets: tuple[Mapping[str, Any], ...]
    unknown: str | None


def training_lineages(manifest: Manifest, others: Sequence[Manifest] = ()) -> list[Lineage]:
    """Lineages of the manifest's models in their order, then of what they started from, each checkpoint once.

    ``others`` are manifests whose ``finetune`` sections made some of the checkpoints, found by the checkpoint's file.
    Raises :class:`CheckpointError` for a file that is not whole.
    """
    makers = _makers([manifest, *others])
    waiting = [(name, reference) for name, reference in manifest.checkpoints.items() if reference is not None]
    seen = {_key(reference): name for name, reference in waiting}
    lineages = []
    while waiting:
        name, reference = waiting.pop(0)
        maker = makers.get(_key(reference))
        if maker is None:
            sets = _card_sets(reference)
            lineages.append(Lineage(name, None, (), sets, _why_unknown(reference, sets)))
            continue
        made_by, section = maker
        init = made_by.checkpoints.get(section.init) or section.init
        started = None if init == RANDOM else seen.get(_key(init), Path(init).name if is_file_reference(init) else init)
        if started is not None and _key(init) not in seen:
            seen[_key(init)] = started
            waiting.append((started, init))
        lineages.append(Lineage(name, started, tuple(_uses(made_by, section)), _card_sets(reference), None))
    return lineages


def card_contradiction(lineage: Lineage, counts: Mapping[str, tuple[int, int]]) -> str | None:
    """How a checkpoint's card differs from the training sets that a manifest describes; None where it does not.

    ``counts`` are the images for training and for validation, by set. A checkpoint without a card says nothing.
    """
    stated = {str(each.get("name")): (each.get("images"), each.get("val_images")) for each in lineage.card_sets}
    if not stated or stated == dict(counts):
        return None
    return (
        f"its card lists {_spelled(stated)} (training + validation images), the manifest describes {_spelled(counts)}; "
        f"what it saw beyond that is not known: {REMEDY}, or train it again"
    )


def _makers(manifests: Sequence[Manifest]) -> dict[str, tuple[Manifest, Training]]:
    """Manifest and section that make each checkpoint; the first manifest's word counts."""
    makers: dict[str, tuple[Manifest, Training]] = {}
    for manifest in manifests:
        for name, section in manifest.finetune.items():
            reference = manifest.checkpoints[name]
            if reference is not None:
                makers.setdefault(_key(reference), (manifest, section))
    return makers


def _uses(manifest: Manifest, section: Training) -> Iterator[Use]:
    for role, items in (("training", section.train), ("validation", section.validation)):
        for item in items:
            yield Use(item, role, manifest.data_root)


def _card_sets(reference: str) -> tuple[Mapping[str, Any], ...]:
    if not is_file_reference(reference):
        return ()
    return tuple(read_card(Path(reference)).get("training", {}).get("sets", ()))


def _why_unknown(reference: str, sets: Sequence[Mapping[str, Any]]) -> str:
    if not is_file_reference(reference):
        return f"{reference}: published weights; the images that they were trained on cannot be compared"
    name = Path(reference).name
    if not sets:
        return f"{name}: neither a manifest nor a card says what it was trained on; {REMEDY}"
    stated = {str(each.get("name")): (each.get("images"), each.get("val_images")) for each in sets}
    return f"{name}: its card lists {_spelled(stated)} (training + validation images), but no manifest; {REMEDY}"


def _spelled(counts: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} ({trained} + {validated})" for name, (trained, validated) in counts.items())


def _key(reference: str) -> str:
    return str(Path(reference).resolve()) if is_file_reference(reference) else reference
