"""Where images come from: sources, and evaluation sets made of them, as a manifest names them."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.archives.severities import IMAGENET_C, PARAMETER_SETS, SEVERITIES, parameters_of
from pipeline.manifest.entries import did_you_mean
from pipeline.manifest.section import SET_NAME, Section


def _distinct(names: list[str]) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        msg = f"names must be distinct, got {', '.join(repeated)} more than once"
        raise ValueError(msg)
    return names


def _ascending(severities: list[int]) -> list[int]:
    if severities != sorted(set(severities)):
        raise ValueError(f"severities must ascend, each named once, got {severities}")
    return severities


def _folder_name(value: str) -> str:
    if not SET_NAME.fullmatch(value):
        raise ValueError("must be letters, digits, '.', '_' or '-': it names folders")
    return value


def _parameter_set(value: str) -> str:
    if value not in PARAMETER_SETS:
        listed = ", ".join(PARAMETER_SETS)
        raise ValueError(f"unknown parameters {value!r}{did_you_mean(value, PARAMETER_SETS)}; known: {listed}")
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]
Corruptions = Annotated[list[FolderName], Field(min_length=1), AfterValidator(_distinct)]
Fold = Literal["digital", "noise", "blur", "color", "task-specific"]
Severities = Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1), AfterValidator(_ascending)]
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


class Stratified(Section):
    """A part of a set with the whole set's class proportions, at least one image of each class."""

    images: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)] = 0


class MedMNISTSource(Section):
    """An official MedMNIST set; the file is taken from the data root after its MD5 is checked, else downloaded."""

    kind: Literal["medmnist"]
    flag: str = Field(description="name in the medmnist package, such as breastmnist")
    size: Literal[28, 64, 128, 224] = 28
    split: Literal["train", "val", "test"]
    limit: Limit = None
    site: Site | None = None
    stratified: Stratified | None = Field(None, description="drawn from the site's share where there is one")


class NpzSource(Section):
    """A .npz file in MedMNIST layout ({split}_images, {split}_labels) with class names of one's own."""

    kind: Literal["npz"]
    path: str = Field(description="the file; relative to the manifest")
    split: str
    class_names: ClassNames
    limit: Limit = None
    site: Site | None = None
    stratified: Stratified | None = Field(None, description="drawn from the site's share where there is one")


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
    dataset: FolderName = Field(description="its folder's name, such as pbc")
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


class MedMNISTCSource(Section):
    """MedMNIST-C's corrupted test sets, as released: a .npz file per corruption, five severities after one another."""

    kind: Literal["medmnist-c"]
    dataset: FolderName = Field(description="folder of the set, such as breastmnist")
    root: str | None = Field(
        None, description="folder that holds the sets; by default medmnist-c in the data root, or the data root itself"
    )
    corruptions: Corruptions | None = Field(None, description="by default every file of the set")
    folds: Annotated[list[Fold], Field(min_length=1), AfterValidator(_distinct)] | None = Field(
        None, description="MedMNIST-C's groups of corruptions, instead of corruptions"
    )
    severities: Severities = Field(list(SEVERITIES), description="in this order after one another")
    class_names: ClassNames | None = Field(None, description="by default those of the MedMNIST set of this name")
    stratified: Stratified | None = Field(None, description="the same images at every severity and corruption")

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.corruptions is not None and self.folds is not None:
            raise ValueError("corruptions and folds are both set; leave one of them out")
        return self


CleanSource = MedMNISTSource | NpzSource | SyntheticSource | MedIMetaSource | FolderSource


class CorruptSource(Section):
    """Another source's images, corrupted by this program: for use where no corrupted files were released."""

    kind: Literal["corrupt"]
    of: Annotated[CleanSource, Field(discriminator="kind")] = Field(description="the source of the clean images")
    corruptions: Corruptions
    severities: Severities = Field(list(SEVERITIES), description="in this order after one another")
    parameters: Annotated[str, AfterValidator(_parameter_set)] = Field(
        IMAGENET_C, description="whose strength of each severity: ImageNet-C's, or MedMNIST-C's for one of its sets"
    )
    seed: Annotated[int, Field(ge=0)] = 0
    stratified: Stratified | None = Field(None, description="the same images at every severity and corruption")

    @model_validator(mode="after")
    def _known_corruptions(self) -> Self:
        known = parameters_of(self.parameters)
        for name in self.corruptions:
            if name not in known:
                listed = ", ".join(known)
                raise ValueError(
                    f"unknown corruption {name!r}{did_you_mean(name, known)}; those of {self.parameters}: {listed}"
                )
        return self

    @model_validator(mode="after")
    def _stratified_once(self) -> Self:
        if self.stratified is not None and getattr(self.of, "stratified", None) is not None:
            raise ValueError("stratified is set here and in of; leave one of them out")
        return self


SourceSpec = CleanSource | MedMNISTCSource | CorruptSource
_Source = Annotated[SourceSpec, Field(discriminator="kind")]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, Mapping) else value


class EvaluationSet(Section):
    """One named set of images with its class names and condition."""

    name: FolderName
    source: Annotated[
        list[_Source], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=_Source | list[_Source])
    ] = Field(description="one source, or several: nights that were appended in this order")
    condition: str = "in-domain"
    class_names: ClassNames | None = Field(None, description="as prompts name them; by default the source's own")
    clean: str | None = Field(None, description="the evaluation set whose images this one corrupts")
