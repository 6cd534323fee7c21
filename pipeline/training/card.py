"""Where trained weights come from: the named inputs of a training's fingerprint, and its entry on the card."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from pipeline.errors import TrainingError
from pipeline.models.checkpoints import digest_weights
from pipeline.store.fingerprints import Fingerprint, digest_json
from pipeline.training.settings import TrainingSet, TrainingSettings
from pipeline.training.state import EpochRecord, best_epoch


def check_names(sets: Sequence[TrainingSet]) -> None:
    """Refuse an empty pool and two sets of one name."""
    names = [each.name for each in sets]
    if not names or len(set(names)) < len(names):
        raise TrainingError(f"training needs at least one set and each under its own name, got {names}")


def training_inputs(
    model: nn.Module,
    sets: Sequence[TrainingSet],
    settings: TrainingSettings,
    card: Mapping[str, Any],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, str]:
    """Everything that the trained weights depend on, by name, but for the numeric kind."""
    inputs = {"initial weights": digest_weights(model.state_dict()), "set order": str([each.name for each in sets])}
    for training_set in sets:
        inputs |= training_set.as_inputs()
    inputs |= {f"card.{name}": digest_json(value) for name, value in card.items()}
    return inputs | settings.as_inputs() | {"mean": str([*mean]), "std": str([*std])}


def training_card(
    sets: Sequence[TrainingSet], settings: TrainingSettings, fingerprint: Fingerprint, curve: Sequence[EpochRecord]
) -> dict[str, Any]:
    """The ``training`` entry of a finished checkpoint's card: no clock, no duration."""
    return {
        "settings": asdict(settings),
        "sets": [each.describe() for each in sets],
        "curve": [
            {"epoch": record.epoch, "train_loss": record.train_loss, "val_accuracy": record.val_accuracy}
            for record in curve
        ],
        "best_epoch": best_epoch(curve),
        "fingerprint": fingerprint.digest,
        "inputs": dict(fingerprint.inputs),
    }
