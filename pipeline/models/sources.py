"""The source models: K models of one architecture, checked before any hour is spent (DESIGN rule 6)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from pipeline.errors import CheckpointError, ProblemsError
from pipeline.models.architectures import AnyArchitecture, Architecture, load_architecture
from pipeline.models.checkpoints import Checkpoint, checkpoint_problems, digest_weights, load_checkpoint
from pipeline.models.preprocessing import Preprocessing
from pipeline.models.publications import Publication, stated_preprocessing

PAIR = "pair"
TEXT_FIELDS = ("hf_tokenizer_name", "context_length", "vocab_size", "tokenizer_kwargs")


@dataclass(frozen=True, slots=True)
class SourceModels:
    """Corners of the simplex in weight space: the module that all sources share, and what each of them holds.

    ``states`` and ``digests`` are by source name, in the manifest's order; states are float32 on the CPU, in the
    module's key layout. The module's own values are not used. ``class_names`` are those of the linear heads, in the
    order of their outputs, None where no card states them.
    """

    architecture: AnyArchitecture
    model: nn.Module
    states: Mapping[str, Mapping[str, Tensor]]
    digests: Mapping[str, str]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K sources, in the manifest's order."""
        return tuple(self.states)

    @property
    def has_text(self) -> bool:
        """Whether the heads are made by a text tower, not by a linear layer: prompts and their policy matter then."""
        return isinstance(self.architecture, Architecture)

    def with_single(self, name: str, state: Mapping[str, Tensor]) -> "SourceModels":
        """One model in the same architecture, such as the result of a static merge."""
        return replace(self, states={name: state}, digests={name: digest_weights(state)})


def load_sources(
    architecture: str, checkpoints: Mapping[str, str], section: str = PAIR, classes: int | None = None
) -> SourceModels:
    """Load K ≥ 1 ``checkpoints``, source name to reference, and check that they are points of one weight space.

    Checked: keys, shapes, dtypes, NaN and infinity, activation, tokenizer and preprocessing. ``section`` is the
    manifest's: ``pair``, whose keys are the names, or ``sources``, whose ``models`` are by name. ``classes`` is the
    class count of an image classifier whose architecture does not state it.

    Raises
    ------
    ProblemsError
        With all problems of all checkpoints at once, each naming its manifest key.
    CheckpointError
        The architecture is unknown or cannot be built.
    """
    shape = load_architecture(architecture, classes, key=f"{section}.architecture")
    model = shape.build()
    problems: list[str] = []
    loaded: dict[str, Checkpoint] = {}
    for name, reference in checkpoints.items():
        key = f"{section}.{name}" if section == PAIR else f"{section}.models.{name}"
        try:
            loaded[name] = load_checkpoint(reference, shape, model)
        except CheckpointError as error:
            problems.append(f"{key}: {error}")
            continue
        problems += checkpoint_problems(key, loaded[name], shape, model)
    publications = {name: checkpoint.publication for name, checkpoint in loaded.items()}
    problems += _partner_problems(section, publications)
    if problems:
        raise ProblemsError(problems)
    return SourceModels(
        architecture=shape,
        model=model,
        states={name: checkpoint.state for name, checkpoint in loaded.items()},
        digests={name: checkpoint.digest() for name, checkpoint in loaded.items()},
        preprocessing=shape.preprocessing(model, stated_preprocessing([*publications.values()])),
        class_names=next((found.class_names for found in publications.values() if found.class_names), None),
    )


def _partner_problems(section: str, publications: Mapping[str, Publication]) -> list[str]:
    """What keeps sources from being merged although each fits the architecture."""
    preprocessing = {name: publication.preprocessing for name, publication in publications.items()}
    texts = {
        name: {field: publication.architecture.get("text_cfg", {}).get(field) for field in TEXT_FIELDS}
        for name, publication in publications.items()
        if publication.architecture is not None
    }
    classes = {
        name: {"class names": list(publication.class_names)}
        for name, publication in publications.items()
        if publication.class_names is not None
    }
    return [
        *(
            f"{section}: preprocessing differs: {difference}; all must see the same pixels"
            for difference in _differences(section, preprocessing)
        ),
        *(f"{section}: tokenizer differs: text_cfg.{difference}" for difference in _differences(section, texts)),
        *(f"{section}: heads differ: {difference}" for difference in _differences(section, classes)),
    ]


def _differences(section: str, stated: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each setting in which a source contradicts the first one that states it."""
    differences = []
    for key in sorted(set().union(*stated.values())):
        first, *others = [name for name, settings in stated.items() if key in settings]
        differences += [
            f"{key} is {stated[first][key]!r} for {_called(section, first)} and {stated[other][key]!r} "
            f"for {_called(section, other)}"
            for other in others
            if _plain(stated[first][key]) != _plain(stated[other][key])
        ]
    return differences


def _called(section: str, name: str) -> str:
    return f"the {name}" if section == PAIR else repr(name)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value
