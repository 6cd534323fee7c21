"""Where images come from: sources, and evaluation sets made of them, as a manifest names them."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from pipeline.manifest.section import SET_NAME, Section


def distinct[Item: (str, int)](items: list[Item]) -> list[Item]:
    """The list itself; ValueError when something is in it twice."""
    repeated = sorted({item for item in items if items.count(item) > 1})
    if repeated:
        msg = f"must be distinct, got {', '.join(map(str, repeated))} more than once"
        raise ValueError(msg)
    return items


ClassNames = Annotated[list[str], Field(min_length=2), AfterValidator(distinct)]
Limit = Annotated[int | None, Field(ge=1, description="only the first images, in the order of the file")]


class Site(Section):
    """One of several label-skewed parts of a set, as federated clinics have them (Hsu et al. 2019)."""

    index: Annotated[int, Field(ge=0)]
    of: Annotated[int, Field(ge=2)]
    alpha: Annotated[float, Field(gt=0)] = Field(0.5, description="of the Dirichlet distribution: small is skewed")
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.index >= self.of:
            raise ValueError(f"index must be < of ({self.of}), got {self.index}")
        return self


class MedMNISTSource(Section):
    """An official MedMNIST set; the file is taken from the data root after its MD5 is checked, else downloaded."""

    kind: Literal["medmnist"]
    flag: str = Field(description="name in the medmnist package, such as breastmnist")
    size: Literal[28, 64, 128, 224] = 28
    split: Literal["train", "val", "test"]
    limit: Limit = None
    site: Site | None = None


class NpzSource(Section):
    """A .npz file in MedMNIST layout ({split}_images, {split}_labels) with class names of one's own."""

    kind: Literal["npz"]
    path: str = Field(description="the file; relative to the manifest")
    split: str
    class_names: ClassNames
    limit: Limit = None
    site: Site | None = None


class SyntheticSource(Section):
    """Procedural cell-like images: deterministic by seed, no downloads."""

    kind: Literal["synthetic"]
    count: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)] = 0
    classes: Annotated[int, Field(ge=2, le=8)] = 4
    site: Literal["a", "b", "c"] = "a"
    corruption: Literal["noise", "pixelate"] | None = None
    severity: Annotated[int, Field(ge=0, le=5)] = 0
    size: Annotated[int, Field(ge=16, le=1024)] = 28


SourceSpec = MedMNISTSource | NpzSource | SyntheticSource
_Source = Annotated[SourceSpec, Field(discriminator="kind")]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, Mapping) else value


class EvaluationSet(Section):
    """One named set of images with its class names and condition."""

    name: str
    source: Annotated[
        list[_Source], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=_Source | list[_Source])
    ] = Field(description="one source, or several: nights that were appended in this order")
    condition: str = "in-domain"
    class_names: ClassNames | None = Field(None, description="as prompts name them; by default the source's own")

    @field_validator("name")
    @classmethod
    def _is_folder_name(cls, value: str) -> str:
        if not SET_NAME.fullmatch(value):
            raise ValueError("must be letters, digits, '.', '_' or '-': it names folders")
        return value
