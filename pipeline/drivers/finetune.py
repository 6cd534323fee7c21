"""``pipeline finetune``: the checkpoints that a manifest says how to make."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.archives.source import Source
from pipeline.errors import ManifestError, PipelineError, ProblemsError, SourceError, StaleCacheError
from pipeline.geometry import Geometry, image_transform, prepare_image
from pipeline.manifest.entries import did_you_mean
from pipeline.manifest.images import EvaluationSet
from pipeline.manifest.schema import Manifest, Training
from pipeline.models.architectures import AnyArchitecture, Architecture
from pipeline.models.checkpoints import checkpoint_problems, load_checkpoint
from pipeline.models.numeric_kind import choose_device
from pipeline.models.publications import read_card
from pipeline.references import is_file_reference
from pipeline.stages.scoring_worker import load_manifest_architecture
from pipeline.stages.sources import open_sources, resolve_class_names
from pipeline.store.fingerprints import digest_json
from pipeline.training.loop import train
from pipeline.training.progress import training_progress
from pipeline.training.settings import TrainingSet, TrainingSettings


@dataclass(frozen=True, slots=True)
class Trained:
    """A checkpoint that is now there: its file, best epoch and validation accuracies, and whether it was before."""

    role: str
    output: str
    up_to_date: bool
    best_epoch: int
    validation_accuracy: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Split:
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: Sequence[str]
    digest: str


def finetune(manifest: Manifest, only: str | None = None) -> list[Trained]:
    """Train what the manifest's ``finetune`` section describes, or ``only`` the model of that name.

    Models are trained in the manifest's order, the generalist of a pair first, so that later ones can start from
    earlier ones; finished ones are left alone. Raises :class:`ManifestError` when there is nothing to train or a model
    has no file to write to.
    """
    sections = {name: manifest.finetune[name] for name in manifest.checkpoints if name in manifest.finetune}
    if only is not None and only not in sections:
        known = ", ".join(sections) or "none"
        raise ManifestError(
            f"{manifest.name}: finetune.{only} is not set{did_you_mean(only, sections)}; set there are: {known}"
        )
    if not sections:
        raise ManifestError(f"{manifest.name}: finetune is not set; say there how a checkpoint is trained")
    chosen = sections if only is None else {only: sections[only]}
    return [_train(manifest, name, section) for name, section in chosen.items()]


def require_card(manifest: Manifest, name: str) -> None:
    """:class:`StaleCacheError` unless a checkpoint's card says what the manifest's ``finetune`` section says.

    For use where the training images are not at hand: initial weights, settings and names of the sets are compared,
    the images are not.
    """
    section, output = manifest.finetune[name], _output_file(manifest, name)
    card = read_card(output)
    training = card.get("training", {})
    stated = {
        "init": card.get("init"),
        "settings": training.get("settings"),
        "sets": [each.get("name") for each in training.get("sets", [])],
    }
    wanted = {
        "init": _init_name(section),
        "settings": asdict(_settings(manifest, section)),
        "sets": [item.name for item in section.train],
    }
    changed = [key for key, value in wanted.items() if stated[key] != value]
    if changed:
        raise StaleCacheError(
            f"{output}: was made with other {', '.join(changed)} than finetune.{name} says, and its training images "
            "are not at hand; restore them, or delete the file"
        )


def _train(manifest: Manifest, role: str, section: Training) -> Trained:
    output = _output_file(manifest, role)
    architecture = load_manifest_architecture(manifest)
    torch.manual_seed(manifest.seeds.training)
    model = architecture.build()
    stated: dict[str, Any] = {}
    if section.init != "random":
        stated = _load_initial_weights(manifest, role, section, architecture, model)
    preprocessing = architecture.preprocessing(model, stated)
    settings = _settings(manifest, section)
    card: dict[str, Any] = {
        "architecture": architecture.config,
        "role": role,
        "init": _init_name(section),
        "preprocessing": preprocessing.as_open_clip(),
    }
    # Decoded pixels go to memory maps: a training set larger than memory is the page cache's business.
    with tempfile.TemporaryDirectory(prefix="pipeline-pixels-") as folder:
        sets = _training_sets(manifest, section, preprocessing.geometry, Path(folder))
        with training_progress(section.epochs) as progress:
            result = train(
                model,
                architecture.tokenizer() if isinstance(architecture, Architecture) else None,
                sets,
                settings,
                output=output,
                card=card,
                mean=preprocessing.mean,
                std=preprocessing.std,
                device=choose_device(manifest.compute.device),
                progress=progress.step,
                epoch_done=progress.epoch_done,
            )
    best = result.curve[result.best_epoch - 1]
    return Trained(role, str(output), result.up_to_date, result.best_epoch, dict(best["val_accuracy"]))


def _init_name(section: Training) -> str:
    return Path(section.init).name if is_file_reference(section.init) else section.init


def _output_file(manifest: Manifest, role: str) -> Path:
    reference = manifest.checkpoints[role]
    if reference is None or not is_file_reference(reference) or not reference.endswith(".safetensors"):
        key = manifest.checkpoint_key(role)
        raise ManifestError(
            f"{manifest.name}: finetune.{role} writes {key}, which must be a .safetensors file, got {reference!r}"
        )
    return Path(reference)


def _load_initial_weights(
    manifest: Manifest, role: str, section: Training, architecture: AnyArchitecture, model: torch.nn.Module
) -> dict[str, Any]:
    """Put the weights to start from into ``model``; what their publisher states about preprocessing goes on."""
    reference = manifest.checkpoints.get(section.init) or section.init
    checkpoint = load_checkpoint(reference, architecture, model)
    problems = checkpoint_problems(f"finetune.{role}.init", checkpoint, architecture, model)
    if problems:
        raise ProblemsError(problems)
    model.load_state_dict(checkpoint.state)
    return dict(checkpoint.publication.preprocessing)


def _settings(manifest: Manifest, section: Training) -> TrainingSettings:
    return TrainingSettings(
        epochs=section.epochs,
        learning_rate=section.learning_rate,
        batch_size=section.batch_size,
        weight_decay=section.weight_decay,
        warmup_steps=section.warmup_steps,
        schedule=section.schedule,
        patience=section.patience,
        horizontal_flip=section.horizontal_flip,
        seed=manifest.seeds.training,
        threads=section.threads,
    )


def _training_sets(manifest: Manifest, section: Training, geometry: Geometry, folder: Path) -> list[TrainingSet]:
    sets, problems = [], []
    for position, (train_item, validation_item) in enumerate(zip(section.train, section.validation, strict=True)):
        try:
            trained = _decode(manifest, train_item, geometry, folder / f"{position}-train.pixels")
            validated = _decode(manifest, validation_item, geometry, folder / f"{position}-validation.pixels")
        except PipelineError as error:
            problems += str(error).splitlines()
            continue
        if trained.class_names != validated.class_names:
            problems.append(
                f"training set {train_item.name!r}: its validation names other classes, or in another order: "
                f"{validated.class_names} instead of {trained.class_names}"
            )
            continue
        sets.append(
            TrainingSet(
                name=train_item.name,
                class_names=resolve_class_names(train_item, trained.class_names),
                templates=manifest.prompts.templates,
                images=trained.images,
                labels=trained.labels,
                val_images=validated.images,
                val_labels=validated.labels,
                digest=digest_json([trained.digest, validated.digest]),
            )
        )
    if problems:
        raise ProblemsError(problems)
    return sets


def _decode(manifest: Manifest, item: EvaluationSet, geometry: Geometry, path: Path) -> _Split:
    """All images of a set's sources, resized for the model; training data must be whole, so a defect is an error."""
    sources = open_sources(item, manifest.data_root)
    shape = (sum(map(len, sources)), geometry.height, geometry.width, 3)
    images: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="w+", shape=shape)
    labels = np.empty(shape[0], dtype=np.int64)
    transform = image_transform(geometry)
    for row, (image, label) in enumerate(_images(item, sources)):
        images[row], labels[row] = prepare_image(image, transform), label
    sha = hashlib.sha256(labels.tobytes())
    for start in range(0, len(images), 1024):
        sha.update(images[start : start + 1024].tobytes())
    return _Split(images, labels, sources[0].class_names, sha.hexdigest())


def _images(item: EvaluationSet, sources: Sequence[Source]) -> Iterator[tuple[Image, int]]:
    for source in sources:
        for image in source.read(0, len(source)):
            if image.image is None or image.label is None:
                reason = image.problem or "has no label"
                raise SourceError(
                    f"training set {item.name!r}: {image.sample_id}: {reason}; mend or leave out this image"
                )
            yield image.image, image.label
