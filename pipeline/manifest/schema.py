"""What a manifest may say: every setting that a result depends on, with its default and its bounds."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from pipeline.coefficients.rules import T3Settings
from pipeline.methods import METHODS

SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Section(BaseModel):
    """A mapping of the manifest: unknown keys and numbers that are not finite are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Pair(Section):
    """The generalist and the expert: two checkpoints of one open_clip architecture."""

    architecture: str = Field(description="open_clip name, hf-hub: id, or path of an open_clip JSON configuration")
    generalist: str = Field(description="open_clip tag, hf-hub: id or local checkpoint file")
    expert: str | None = Field(None, description="like generalist; may be absent where only a generalist is trained")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


def _distinct(names: list[str]) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        msg = f"names must be distinct, got {', '.join(repeated)} more than once"
        raise ValueError(msg)
    return names


ClassNames = Annotated[list[str], Field(min_length=2), AfterValidator(_distinct)]
Limit = Annotated[int | None, Field(ge=1, description="only the first images, in the order of the file")]


class MedMNISTSource(Section):
    """An official MedMNIST set; the file is taken from the data root after its MD5 is checked, else downloaded."""

    kind: Literal["medmnist"]
    flag: str = Field(description="name in the medmnist package, such as breastmnist")
    size: Literal[28, 64, 128, 224] = 28
    split: Literal["train", "val", "test"]
    limit: Limit = None


class NpzSource(Section):
    """A .npz file in MedMNIST layout ({split}_images, {split}_labels) with class names of one's own."""

    kind: Literal["npz"]
    path: str = Field(description="the file; relative to the manifest")
    split: str
    class_names: ClassNames
    limit: Limit = None


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


class Prompts(Section):
    """How class names become class embeddings."""

    templates: Annotated[list[str], Field(min_length=1)] = ["a photo of {}."]
    text_tower: Literal["merged", "generalist"] = "merged"
    embeddings: Literal["curve", "exact"] = Field(
        "curve", description="heads interpolated in λ within curve_tolerance, or one text forward per λ"
    )
    curve_tolerance: Annotated[float, Field(gt=0)] = Field(1e-4, description="largest error in any logit")

    @field_validator("templates")
    @classmethod
    def _has_placeholder(cls, value: list[str]) -> list[str]:
        for template in value:
            if "{}" not in template:
                msg = f"each template must contain {{}} for the class name, got {template!r}"
                raise ValueError(msg)
        return value


_T3 = T3Settings()


class Coefficient(Section):
    """The rule that turns evidence into λ, and its settings (T³ Eq. 10 and 11)."""

    rule: Literal["t3"] = "t3"
    gamma: Annotated[float, Field(gt=0)] = _T3.gamma
    delta: Annotated[float, Field(ge=0, le=1)] = _T3.delta
    tau_generalist: Annotated[float, Field(ge=0)] = _T3.tau_generalist
    tau_expert: Annotated[float, Field(ge=0)] = _T3.tau_expert
    lambda_min: Annotated[float, Field(ge=0, le=1)] = _T3.lambda_min
    lambda_max: Annotated[float, Field(ge=0, le=1)] = _T3.lambda_max

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lambda_min > self.lambda_max:
            msg = f"lambda_min must be <= lambda_max, got {self.lambda_min} and {self.lambda_max}"
            raise ValueError(msg)
        return self

    @property
    def settings(self) -> T3Settings:
        """The settings without the rule's name."""
        return T3Settings(**self.model_dump(exclude={"rule"}))


class Window(Section):
    """Consecutive parts inside which rows may be grouped; the smaller bound counts."""

    rows: Annotated[int, Field(ge=1)] = 65_536
    bytes: Annotated[int, Field(ge=1)] = 8 << 30


class Grouping(Section):
    """How samples become batches that share one merged model."""

    kind: Literal["arrival", "lambda"] = Field("arrival", description="the default method: t3-batch or t3-lambda")
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    window: Window = Window()
    tolerance: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="t3-lambda: largest |λ_i - λ_b|; by default batches of batch_size with their mean λ"
    )


class Compute(Section):
    """Where and in which numeric kind the forwards run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1)] = Field(1, description="per worker; part of the numeric kind")
    tile: Annotated[int, Field(ge=1)] = Field(32, description="images per forward call; part of the numeric kind")
    workers: Annotated[int, Field(ge=1)] = 1
    read_bytes: Annotated[int, Field(ge=1 << 16)] = Field(64 << 20, description="pixels read ahead at a time")


class Training(Section):
    """How ``pipeline finetune`` makes one of the two checkpoints (the paper's recipe is the default)."""

    init: str = Field(description="random, generalist, or a checkpoint like those of the pair")
    train: Annotated[list[EvaluationSet], Field(min_length=1)]
    validation: Annotated[list[EvaluationSet], Field(min_length=1)]
    epochs: Annotated[int, Field(ge=1)] = 50
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(ge=2)] = 32
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine"] = "constant"
    patience: Annotated[int, Field(ge=1)] = 5
    horizontal_flip: bool = True
    threads: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _same_sets(self) -> Self:
        trained, validated = [item.name for item in self.train], [item.name for item in self.validation]
        if trained != validated:
            msg = f"train and validation must name the same sets in the same order, got {trained} and {validated}"
            raise ValueError(msg)
        return self


class Finetune(Section):
    """The checkpoints that this manifest can make; each is written to the file that the pair names."""

    generalist: Training | None = None
    expert: Training | None = None


Role = Literal["generalist", "expert"]
ROLES: tuple[Role, ...] = ("generalist", "expert")


class Seeds(Section):
    """Every seed of the run."""

    training: Annotated[int, Field(ge=0)] = 0


class Manifest(Section):
    """One study: a pair, its evaluation sets and every setting that a result depends on."""

    name: Annotated[str, Field(min_length=1)]
    output: Annotated[str, Field(min_length=1)] = Field(description="run directory; relative to the manifest")
    archives: str = Field("../archives", description="folder of the archives, one per evaluation set")
    data_root: str | None = Field(
        None, description="folder in which published files are looked up; by default PIPELINE_DATA_ROOT"
    )
    pair: Pair
    evaluation_sets: list[EvaluationSet] = []
    methods: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="what `infer` computes by default: generalist, expert and the grouping's own method"
    )
    prompts: Prompts = Prompts()
    coefficient: Coefficient = Coefficient()
    grouping: Grouping = Grouping()
    compute: Compute = Compute()
    part_rows: Annotated[int, Field(ge=1)] = 8192
    seeds: Seeds = Seeds()
    finetune: Finetune = Finetune()

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: list[str] | None) -> list[str] | None:
        for name in value or []:
            check_method(name)
        return value

    @model_validator(mode="after")
    def _distinct_sets(self) -> Self:
        names = [item.name for item in self.evaluation_sets]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            msg = f"evaluation_sets must have distinct names, got {', '.join(repeated)} more than once"
            raise ValueError(msg)
        return self

    @property
    def selected_methods(self) -> list[str]:
        """``methods``, or the plain models and the method of the grouping's kind."""
        own = "t3-batch" if self.grouping.kind == "arrival" else "t3-lambda"
        return list(self.methods) if self.methods is not None else ["generalist", "expert", own]


def check_method(name: str) -> None:
    """Raise ValueError, with the nearest known name, unless ``name`` is a method."""
    if name not in METHODS:
        msg = f"unknown method {name!r}{did_you_mean(name, METHODS)}; known: {', '.join(METHODS)}"
        raise ValueError(msg)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with the nearest of ``known``, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
