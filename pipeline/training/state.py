"""What a training keeps on disk: a state after each epoch to resume from, and the finished checkpoint with its card.

The checkpoint is one safetensors file whose only metadata key, ``pipeline.card``, holds the card as JSON (one key,
because safetensors writes several in random order). Neither holds a clock or a duration: equal work gives equal bytes.
The JSON file beside it is the same card plus the seconds of each epoch.
"""

import json
import pickle
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import StaleCacheError, TrainingError
from pipeline.models.checkpoints import write_checkpoint
from pipeline.models.publications import CARD_KEY
from pipeline.store.files import write_atomically, write_json
from pipeline.store.fingerprints import Fingerprint


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One point of the training curve. Epochs count from 1; accuracies are fractions by set name."""

    epoch: int
    train_loss: float
    val_accuracy: dict[str, float]
    seconds: float

    @property
    def mean_accuracy(self) -> float:
        """Mean validation accuracy over the sets: what early stopping watches."""
        return sum(self.val_accuracy.values()) / len(self.val_accuracy)


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Everything that the next epoch depends on."""

    model: dict[str, Tensor]
    best_model: dict[str, Tensor]
    optimizer: dict[str, Any]
    curve: tuple[EpochRecord, ...]


def best_epoch(curve: Sequence[EpochRecord]) -> int:
    """Epoch of the highest mean validation accuracy, the first one on a tie; 0 for an empty curve."""
    return max(curve, key=lambda record: (record.mean_accuracy, -record.epoch)).epoch if curve else 0


@dataclass(frozen=True, slots=True)
class TrainingFiles:
    """The files of one training, all named after ``output``, and the fingerprint that they must carry."""

    output: Path
    fingerprint: Fingerprint

    def __post_init__(self) -> None:
        if self.output.suffix != ".safetensors":
            raise TrainingError(f"{self.output}: the output of a training must end in .safetensors")

    @property
    def card_path(self) -> Path:
        """Where the readable card lies."""
        return self.output.with_suffix(".json")

    @property
    def state_path(self) -> Path:
        """Where the state of an unfinished training lies."""
        return self.output.parent / f".{self.output.stem}.training" / "state.pt"

    def finished_card(self) -> dict[str, Any] | None:
        """Card of the finished checkpoint, None when there is none; :class:`StaleCacheError` if made otherwise."""
        if not self.output.exists():
            self._check_card_path()
            return None
        try:
            with safe_open(self.output, framework="pt") as file:
                card: dict[str, Any] = json.loads((file.metadata() or {})[CARD_KEY])
            inputs = card["training"]["inputs"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StaleCacheError(
                f"{self.output}: not a checkpoint written by a training ({error}); "
                "give another 'output', or move this file away"
            ) from error
        self._check_inputs(self.output, inputs)
        return card

    def load_state(self) -> TrainingState | None:
        """State of the last finished epoch, None when there is none; :class:`StaleCacheError` if made otherwise."""
        path = self.state_path
        if not path.exists():
            return None
        if not zipfile.is_zipfile(path):
            raise StaleCacheError(f"{path}: not a state written by a training; delete it and train again")
        try:
            raw = torch.load(path, map_location="cpu", weights_only=True)
            inputs = raw["inputs"]
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise StaleCacheError(
                f"{path}: cannot be read ({type(error).__name__}); delete it and train again"
            ) from error
        self._check_inputs(path, inputs)
        curve = tuple(EpochRecord(**record) for record in raw["curve"])
        return TrainingState(raw["model"], raw["best_model"], raw["optimizer"], curve)

    def save_state(self, state: TrainingState) -> None:
        """Put ``state`` in place of the previous epoch's, whole or not at all."""
        raw = {
            "inputs": dict(self.fingerprint.inputs),
            "model": state.model,
            "best_model": state.best_model,
            "optimizer": state.optimizer,
            "curve": [asdict(record) for record in state.curve],
        }
        write_atomically(self.state_path, lambda path: torch.save(raw, path))

    def commit(self, weights: Mapping[str, Tensor], card: Mapping[str, Any], curve: Sequence[EpochRecord]) -> None:
        """Write the card, then the checkpoint that makes the training finished, then remove the state."""
        seconds = {"seconds_per_epoch": [record.seconds for record in curve]}
        write_json(self.card_path, {**card, **seconds})
        write_checkpoint(self.output, weights, {CARD_KEY: json.dumps(card, sort_keys=True, ensure_ascii=False)})
        self.remove_state()

    def remove_state(self) -> None:
        """Remove the state folder, if any."""
        if self.state_path.parent.exists():
            shutil.rmtree(self.state_path.parent)

    def _check_card_path(self) -> None:
        if not self.card_path.exists():
            return
        try:
            found = json.loads(self.card_path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or "training" not in found:
            raise StaleCacheError(
                f"{self.card_path}: the card of {self.output.name} would overwrite this file; give another 'output'"
            )

    def _check_inputs(self, path: Path, cached: Mapping[str, str]) -> None:
        changed = self.fingerprint.changed_inputs(cached)
        if not changed:
            return
        now = self.fingerprint.inputs
        details = "; ".join(
            f"{name} changed (cached {_short(cached.get(name))}, now {_short(now.get(name))})" for name in changed
        )
        culprit = path.parent if path == self.state_path else path
        raise StaleCacheError(f"{path}: {details}; give another 'output', or delete {culprit}")


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value[:12] if len(value) == 64 else value
