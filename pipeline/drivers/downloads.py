"""What a manifest's first run would download: named with where it comes from, and never fetched here."""

from pathlib import Path

from pipeline.archives.medmnist import published_file
from pipeline.manifest.images import EvaluationSet, MedMNISTSource
from pipeline.manifest.schema import Manifest
from pipeline.models.architectures import AnyArchitecture, Architecture, awaited_files
from pipeline.models.published import hub_weights, tag_weights
from pipeline.models.publications import tag_configuration
from pipeline.references import HUB_PREFIX, is_file_reference

NOT_YET = "not there yet, fetched at first use:"


def awaited_architecture(manifest: Manifest) -> list[str]:
    """What building the models would fetch, in words."""
    return awaited_files(manifest.architecture)


def awaited_weights(manifest: Manifest, architecture: AnyArchitecture) -> list[str]:
    """Checkpoints, and weights that a training starts from, which would be fetched: key, reference and origin.

    Raises :class:`~pipeline.errors.CheckpointError` for a tag that the architecture does not have.
    """
    if not isinstance(architecture, Architecture):
        return []
    references = {manifest.checkpoint_key(name): value for name, value in manifest.checkpoints.items() if value}
    references |= {
        f"finetune.{name}.init": section.init
        for name, section in manifest.finetune.items()
        if section.init != "random" and section.init not in manifest.checkpoints
    }
    lines = []
    for key, reference in references.items():
        if is_file_reference(reference):
            continue
        on_hub = reference.startswith(HUB_PREFIX)
        found = (
            hub_weights(reference.removeprefix(HUB_PREFIX))
            if on_hub
            else tag_weights(tag_configuration(reference, architecture))
        )
        if found.path is None:
            lines.append(f"{key}: {reference} of {architecture.reference} is {NOT_YET} from {found.where}")
    return lines


def awaited_images(item: EvaluationSet, data_root: str | None) -> list[str]:
    """Files of published sets that listing this set's images would fetch: name and address."""
    root = Path(data_root) if data_root else None
    specs = [spec for spec in item.source if isinstance(spec, MedMNISTSource)]
    files = [published_file(spec.flag, spec.size, root) for spec in specs]
    return list(dict.fromkeys(f"{file.name} from {file.url}" for file in files if file.path is None))
