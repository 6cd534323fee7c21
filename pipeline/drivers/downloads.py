"""What a manifest's first run would download: named with where it comes from, and never fetched here."""

from pathlib import Path

from pipeline.archives.medmnist import published_class_names, published_file
from pipeline.manifest.images import CorruptSource, EvaluationSet, MedMNISTSource
from pipeline.manifest.schema import Manifest
from pipeline.models.architectures import AnyArchitecture, Architecture, awaited_files
from pipeline.models.publications import tag_configuration
from pipeline.models.published import Published, hub_weights, tag_weights
from pipeline.references import HUB_PREFIX, is_file_reference

NOT_YET = "not there yet, fetched at first use:"


def awaited_architecture(manifest: Manifest) -> list[str]:
    """What building the models would fetch, in words."""
    return awaited_files(manifest.architecture)


def awaited_weights(manifest: Manifest, architecture: AnyArchitecture | None) -> list[str]:
    """Checkpoints, and weights that a training starts from, which would be fetched: key, reference and origin.

    Tags are left out while the ``architecture`` itself is awaited. Raises :class:`~pipeline.errors.CheckpointError` for
    a tag that the architecture does not have.
    """
    references = {manifest.checkpoint_key(name): value for name, value in manifest.checkpoints.items() if value}
    references |= {
        f"finetune.{name}.init": section.init
        for name, section in manifest.finetune.items()
        if section.init != "random" and section.init not in manifest.checkpoints
    }
    return [
        f"{key}: {reference}: {NOT_YET} weights from {found.where}"
        for key, reference in references.items()
        if (found := _published(reference, architecture)) is not None and found.path is None
    ]


def _published(reference: str, architecture: AnyArchitecture | None) -> Published | None:
    """Published weights that a reference means; None for a file, and for a classifier, whose weights are files."""
    if reference.startswith(HUB_PREFIX):
        return hub_weights(reference.removeprefix(HUB_PREFIX))
    if is_file_reference(reference) or not isinstance(architecture, Architecture):
        return None
    return tag_weights(tag_configuration(reference, architecture))


def awaited_images(item: EvaluationSet, data_root: str | None) -> list[str]:
    """Files of published sets that listing this set's images would fetch: name and address."""
    root = Path(data_root) if data_root else None
    specs = [spec.of if isinstance(spec, CorruptSource) else spec for spec in item.source]
    files = [published_file(spec.flag, spec.size, root) for spec in specs if isinstance(spec, MedMNISTSource)]
    return list(dict.fromkeys(f"{file.name} from {file.url}" for file in files if file.path is None))


def published_names(item: EvaluationSet) -> tuple[str, ...]:
    """Class names of a set whose images are still to be downloaded, from its publisher's metadata."""
    first = item.source[0]
    clean = first.of if isinstance(first, CorruptSource) else first
    return (published_class_names(clean.flag) or ()) if isinstance(clean, MedMNISTSource) else ()
