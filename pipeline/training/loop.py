"""The training loop: pooled sets, early stopping, exact resume."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.models.checkpoints import published_layout
from pipeline.models.numeric_kind import measure_numeric_kind
from pipeline.store.fingerprints import Fingerprint
from pipeline.store.lease import hold_lease
from pipeline.training.batches import epoch_batches, generator_for, seed_for, steps_per_epoch
from pipeline.training.card import check_names, training_card, training_inputs
from pipeline.training.objective import VALIDATION_BATCH, Objective, Tokenizer, clamp_logit_scale, require_head_classes
from pipeline.training.settings import TrainingSet, TrainingSettings
from pipeline.training.state import EpochRecord, TrainingFiles, TrainingState, best_epoch


class StepProgress(Protocol):
    """Hears of each step; epochs and steps count from 1."""

    def __call__(self, epoch: int, step: int, steps: int, loss: float, images_per_second: float) -> None:
        """Step ``step`` of the ``steps`` of this epoch is done; the rate is the epoch's so far."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished training. ``up_to_date`` says that it had been finished before and nothing was computed."""

    output: Path
    card: dict[str, Any]
    up_to_date: bool

    @property
    def best_epoch(self) -> int:
        """Epoch whose weights were kept, counted from 1."""
        return int(self.card["training"]["best_epoch"])

    @property
    def curve(self) -> list[dict[str, Any]]:
        """Per epoch: ``epoch``, ``train_loss`` and ``val_accuracy`` by set name."""
        return [*self.card["training"]["curve"]]


def train(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    sets: Sequence[TrainingSet],
    settings: TrainingSettings,
    *,
    output: Path,
    card: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    progress: StepProgress | None = None,
    epoch_done: Callable[[EpochRecord], None] | None = None,
) -> TrainingResult:
    """Train ``model`` in place on the pooled ``sets`` and commit its best epoch at ``output`` (safetensors).

    Each step draws one batch from one set, whose classes form the softmax. Killed at any moment and run again, it
    goes on after the last whole epoch and, within one numeric kind on CPU, commits the bytes of an undisturbed run.
    ``card`` is a JSON object that says what the model is: ``architecture`` and ``preprocessing`` as
    :func:`pipeline.models.checkpoints.load_checkpoint` reads them, and where the initial weights came from; it and
    those weights are part of the fingerprint. ``tokenizer`` is open_clip's, which takes ``context_length``; a
    :class:`~pipeline.models.classifiers.LinearClassifier` needs none, and its file has the names that timm loads.
    Afterwards ``model`` holds the best epoch, except that an up-to-date result leaves it untouched: read the weights
    from ``output``.

    Raises
    ------
    StaleCacheError
        ``output`` or the state of an unfinished training was made with other data, settings or numeric kind.
    RunDirectoryError
        Another process is training the same ``output``.
    TrainingError
        The loss or the weights are not finite, or a prompt, an image or the classes do not fit the model.
    """
    device = torch.device(device)
    assert "training" not in card, "the card's training entry is written here"
    check_names(sets)
    require_head_classes(model, sets)
    with _threads(settings.threads):
        model.to(device=device, dtype=torch.float32)
        kind = measure_numeric_kind(device, precision="fp32", tile=VALIDATION_BATCH)
        inputs = training_inputs(model, sets, settings, card, mean=mean, std=std) | kind.as_inputs()
        files = TrainingFiles(output, Fingerprint(inputs))
        if finished := files.finished_card():
            files.remove_state()
            return TrainingResult(output, finished, up_to_date=True)
        objectives = {
            each.name: Objective(model, tokenizer, each, settings, mean=mean, std=std, device=device) for each in sets
        }
        sizes = [len(each.images) for each in sets]
        with hold_lease(files.state_path.parent):
            trainer = _Trainer(model, objectives, sizes, settings, files, device)
            trainer.run(progress, epoch_done)
            full_card = {**card, "training": training_card(sets, settings, files.fingerprint, trainer.curve)}
            files.commit(published_layout(model, trainer.best_model), full_card, trainer.curve)
        model.load_state_dict(trainer.best_model)
    return TrainingResult(output, full_card, up_to_date=False)


def learning_rate_at(steps_done: int, total_steps: int, settings: TrainingSettings) -> float:
    """Learning rate of the next step: linear warm-up, then constant or half a cosine down to zero at the last epoch."""
    if steps_done < settings.warmup_steps:
        return settings.learning_rate * (steps_done + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    fraction = (steps_done - settings.warmup_steps) / max(total_steps - settings.warmup_steps, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))


class _Trainer:
    def __init__(
        self,
        model: nn.Module,
        objectives: Mapping[str, Objective],
        sizes: Sequence[int],
        settings: TrainingSettings,
        files: TrainingFiles,
        device: torch.device,
    ) -> None:
        self.model, self.objectives, self.sizes = model, objectives, sizes
        self.settings, self.files, self.device = settings, files, device
        self.steps = steps_per_epoch(sizes, settings.batch_size)
        self.optimizer = _optimizer(model, settings)
        self.curve: list[EpochRecord] = []
        self.best_model = _copy_weights(model)

    def run(self, progress: StepProgress | None, epoch_done: Callable[[EpochRecord], None] | None) -> None:
        self._restore()
        while not self._is_finished():
            started = time.perf_counter()
            epoch = len(self.curve) + 1
            train_loss = self._train_epoch(epoch, progress)
            weights = _copy_weights(self.model)
            self._check_finite(weights, epoch)
            self.model.eval()
            accuracy = {name: objective.accuracy() for name, objective in self.objectives.items()}
            self.curve.append(EpochRecord(epoch, train_loss, accuracy, time.perf_counter() - started))
            if best_epoch(self.curve) == epoch:
                self.best_model = weights
            optimizer = self.optimizer.state_dict()
            self.files.save_state(TrainingState(weights, self.best_model, optimizer, tuple(self.curve)))
            if epoch_done is not None:
                epoch_done(self.curve[-1])

    def _restore(self) -> None:
        state = self.files.load_state()
        if state is None:
            return
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.best_model = state.best_model
        self.curve = [*state.curve]

    def _is_finished(self) -> bool:
        done = len(self.curve)
        return done >= self.settings.epochs or done - best_epoch(self.curve) >= self.settings.patience

    def _train_epoch(self, epoch: int, progress: StepProgress | None) -> float:
        seed, names = self.settings.seed, [*self.objectives]
        batches = epoch_batches(self.sizes, self.settings.batch_size, seed=seed, epoch=epoch)
        losses: list[float] = []
        images, started = 0, time.perf_counter()
        self.model.train()
        with _seeded_dropout(self.device, seed_for(seed, epoch)):
            for step, batch in enumerate(batches, start=1):
                name = names[batch.set_index]
                self._set_learning_rate((epoch - 1) * self.steps + step - 1)
                loss = self._step(self.objectives[name].loss(batch.rows, generator_for(seed, epoch, step)))
                if not math.isfinite(loss):
                    raise self._diverged(f"the loss became {loss} in epoch {epoch}, step {step}, on {name!r}")
                losses.append(loss)
                images += len(batch.rows)
                if progress is not None:
                    progress(epoch, step, len(batches), loss, images / (time.perf_counter() - started))
        return math.fsum(losses) / len(losses)

    def _step(self, loss: Tensor) -> float:
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        clamp_logit_scale(self.model)
        return loss.item()

    def _set_learning_rate(self, steps_done: int) -> None:
        rate = learning_rate_at(steps_done, self.steps * self.settings.epochs, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _check_finite(self, weights: Mapping[str, Tensor], epoch: int) -> None:
        for name, tensor in weights.items():
            if not torch.isfinite(tensor).all():
                raise self._diverged(f"weight {name!r} is not finite after epoch {epoch}")

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{self.files.output}: {what}; lower training.learning_rate (now {self.settings.learning_rate}) or raise "
            f"training.warmup_steps (now {self.settings.warmup_steps}), and check that the initial weights are finite"
        )


def _optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def _copy_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _seeded_dropout(device: torch.device, seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
