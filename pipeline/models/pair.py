"""The pair: a generalist and an expert of one architecture, checked before any hour is spent (DESIGN rule 6)."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.errors import CheckpointError, ProblemsError
from pipeline.models.architectures import Architecture, Preprocessing, load_architecture
from pipeline.models.checkpoints import Checkpoint, checkpoint_problems, load_checkpoint
from pipeline.models.publications import Publication, stated_preprocessing

TEXT_FIELDS = ("hf_tokenizer_name", "context_length", "vocab_size", "tokenizer_kwargs")


@dataclass(frozen=True, slots=True)
class Pair:
    """Both ends of the segment: the module they share, their weights (float32, CPU), digests and preprocessing."""

    architecture: Architecture
    model: nn.Module
    generalist: Mapping[str, Tensor]
    expert: Mapping[str, Tensor]
    generalist_digest: str
    expert_digest: str
    preprocessing: Preprocessing


def load_pair(architecture: str, generalist: str, expert: str) -> Pair:
    """Load both checkpoints and check that they are two points of one weight space.

    Checked: keys, shapes, dtypes, NaN and infinity, activation, tokenizer and preprocessing.

    Raises
    ------
    ProblemsError
        With all problems of both checkpoints at once, each naming its manifest key.
    """
    shape = load_architecture(architecture)
    model = shape.build()
    problems: list[str] = []
    ends: dict[str, Checkpoint] = {}
    for name, reference in (("pair.generalist", generalist), ("pair.expert", expert)):
        try:
            ends[name] = load_checkpoint(reference, shape, model)
        except CheckpointError as error:
            problems.append(f"{name}: {error}")
            continue
        problems += checkpoint_problems(name, ends[name], shape, model)
    if len(ends) == 2:
        problems += _partner_problems(*(end.publication for end in ends.values()))
    if problems:
        raise ProblemsError(problems)
    first, second = ends.values()
    return Pair(
        architecture=shape,
        model=model,
        generalist=first.state,
        expert=second.state,
        generalist_digest=first.digest(),
        expert_digest=second.digest(),
        preprocessing=shape.preprocessing(model, stated_preprocessing([first.publication, second.publication])),
    )


def _partner_problems(generalist: Publication, expert: Publication) -> list[str]:
    problems = []
    for key in sorted(generalist.preprocessing.keys() & expert.preprocessing.keys()):
        ours, theirs = generalist.preprocessing[key], expert.preprocessing[key]
        if _plain(ours) != _plain(theirs):
            problems.append(
                f"pair: preprocessing differs: {key} is {ours} for the generalist and {theirs} for the expert; "
                "both must see the same pixels"
            )
    if generalist.architecture is not None and expert.architecture is not None:
        problems += [
            f"pair: tokenizer differs: text_cfg.{field} is {ours!r} for the generalist and {theirs!r} for the expert"
            for field in TEXT_FIELDS
            if (ours := generalist.architecture.get("text_cfg", {}).get(field))
            != (theirs := expert.architecture.get("text_cfg", {}).get(field))
        ]
    return problems


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value
