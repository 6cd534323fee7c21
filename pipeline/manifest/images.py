"""Where images come from: sources, and evaluation sets made of them, as a manifest names them."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from pipeline.manifest.section import SET_NAME, Section


def _distinct(names: list[str]) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        msg = f"names must be distinct, got {', '.join(repeated)} more than once"
        raise ValueError(msg)
    return names


ClassNames = Annotated[list[str], Field(min_length=2), AfterValidator(_distinct)]
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


class MedIMetaSource(Section):
    """One split of a MedIMeta data set in its released layout; class names are those of its info.yaml."""

    kind: Literal["medimeta"]
    dataset: str = Field(pattern=f"^{SET_NAME.pattern}$", description="its folder's name, such as pbc")
    root: str | None = Field(
        None, description="folder that holds the data sets; by default DATA_ROOT/medimeta or DATA_ROOT"
    )
    task: str | None = Field(None, description="by its name in info.yaml; may be left out where there is only one")
    split: Literal["train", "val", "test"]
    splits: Literal["medimeta", "original"] = Field(
        "medimeta", description="MedIMeta's own splits, or those of the data set that the images were taken from"
    )
    limit: Limit = None


class FolderSource(Section):
    """Image files: a sub-folder for each class, or a CSV file with the header path,label[,group_id]."""

    kind: Literal["folder"]
    path: str = Field(description="the folder; relative to the manifest")
    labels: str | None = Field(
        None, description="CSV file, relative to the manifest; its paths are relative to the folder"
    )
    class_names: ClassNames | None = Field(
        None, description="order of the classes; by default the sub-folders, or the labels, in alphabetical order"
    )
    limit: Limit = None


SourceSpec = MedMNISTSource | NpzSource | SyntheticSource | MedIMetaSource | FolderSource
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
