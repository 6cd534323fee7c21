"""What a manifest may say: every setting that a result depends on, with its default and its bounds."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.coefficients.evidence import EXPERT, GENERALIST
from pipeline.coefficients.rules import T3Settings
from pipeline.coefficients.streams import parse_order
from pipeline.manifest.entries import ALL, USER_RULE, check_entries, did_you_mean
from pipeline.manifest.images import EvaluationSet, distinct
from pipeline.manifest.section import SET_NAME, Section
from pipeline.methods import GROUPINGS, METHODS, RULE_NAMES, unmet_needs

ROLES = (GENERALIST, EXPERT)
# What stands beside source names in ledgers and fingerprints.
RESERVED = frozenset({"merged", "sources", "architecture", "preprocessing", "class_names", "prompts", "text_tower"})


Architecture = Annotated[
    str, Field(description="open_clip name, hf-hub: id, timm:NAME, or path of an open_clip or timm JSON configuration")
]
Precision = Literal["fp32", "bf16", "fp16"]
Classes = Annotated[int | None, Field(ge=2, description="of a timm classifier whose architecture does not say it")]


class Pair(Section):
    """The generalist and the expert: two checkpoints of one architecture."""

    architecture: Architecture
    generalist: str = Field(description="open_clip tag, hf-hub: id or local checkpoint file")
    expert: str | None = Field(None, description="like generalist; may be absent where only a generalist is trained")
    precision: Precision = "fp32"
    classes: Classes = None


class Sources(Section):
    """K source models of one architecture, by name; generalist and expert among them make a pair too."""

    architecture: Architecture
    models: Annotated[dict[str, str], Field(min_length=2)] = Field(
        description="checkpoint by name: open_clip tag, hf-hub: id or local file"
    )
    precision: Precision = "fp32"
    classes: Classes = None

    @field_validator("models")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not SET_NAME.fullmatch(name):
                raise ValueError(f"{name!r} must be letters, digits, '.', '_' or '-': it names columns and folders")
            if name not in ROLES and (name in METHODS or name in RESERVED):
                raise ValueError(f"{name!r} is a word of this program; give the model another name")
        return value


class Prompts(Section):
    """How class names become class embeddings."""

    templates: list[str] = Field(["a photo of {}."], min_length=1)
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
    """The default rule that turns evidence into λ, and the settings of T³ (Eq. 10 and 11)."""

    rule: str = Field("t3", description=f"{', '.join(RULE_NAMES)}, or module:function of your own")
    gamma: Annotated[float, Field(gt=0)] = _T3.gamma
    delta: Annotated[float, Field(ge=0, le=1)] = _T3.delta
    tau_generalist: Annotated[float, Field(ge=0)] = _T3.tau_generalist
    tau_expert: Annotated[float, Field(ge=0)] = _T3.tau_expert
    lambda_min: Annotated[float, Field(ge=0, le=1)] = _T3.lambda_min
    lambda_max: Annotated[float, Field(ge=0, le=1)] = _T3.lambda_max
    mapping: Literal["sigmoid", "rescaled"] = _T3.mapping

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, value: str) -> str:
        # A grouping's suffix belongs to the method: the rule of `module:function-batch` is `module:function`.
        if value not in RULE_NAMES and ("-" in value or not USER_RULE.fullmatch(value)):
            known = ", ".join(RULE_NAMES)
            raise ValueError(
                f"unknown rule {value!r}{did_you_mean(value, RULE_NAMES)}; known: {known}, or module:function"
            )
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lambda_min > self.lambda_max:
            msg = f"lambda_min must be <= lambda_max, got {self.lambda_min} and {self.lambda_max}"
            raise ValueError(msg)
        return self


class Window(Section):
    """Consecutive parts inside which rows may be grouped; the smaller bound counts."""

    rows: Annotated[int, Field(ge=1)] = 65_536
    bytes: Annotated[int, Field(ge=1)] = 8 << 30


class Grouping(Section):
    """How samples become batches that share one merged model."""

    kind: Literal["arrival", "lambda", "mixture"] = Field(
        "arrival", description="the default method: the rule's -batch, -lambda or -mixture"
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    window: Window = Window()
    tolerance: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="lambda: largest |λ_i - λ_b|; by default batches of batch_size with their mean λ"
    )
    clusters: Annotated[int, Field(ge=1, le=64)] = Field(3, description="mixture: components of the Beta mixture")
    order: str = Field("arrival", description="arrival: arrival, iid, dirichlet(ALPHA) or temporal, inside a window")

    @field_validator("order")
    @classmethod
    def _known_order(cls, value: str) -> str:
        parse_order(value)
        return value


class Compute(Section):
    """Where and in which numeric kind the forwards run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1)] = Field(1, description="per worker; part of the numeric kind")
    tile: Annotated[int, Field(ge=1)] = Field(32, description="images per forward call; part of the numeric kind")
    workers: Annotated[int, Field(ge=1)] = 1
    per_sample: Literal["exact", "merge-loop"] = Field(
        "exact", description="a λ for every image: one batched forward of per-sample weights, or a merge for each λ"
    )
    memory_format: Literal["contiguous", "channels_last"] = Field(
        "contiguous",
        description="how pixels and kernels of convolutions lie in memory; part of the numeric kind; measure it with "
        "`pipeline bench scoring`",
    )
    compile: bool = Field(
        default=False,
        description="image towers by torch.compile, but for the exact per-sample forward; part of the numeric kind; "
        "measure it with `pipeline bench scoring`",
    )
    read_bytes: Annotated[int, Field(ge=1 << 16)] = Field(
        64 << 20,
        description="pixels read ahead at a time, at most; of a window out of order, four times as many stay decoded",
    )


class Training(Section):
    """How ``pipeline finetune`` makes a model's checkpoint (the paper's recipe is the default)."""

    init: str = Field(description="random, the name of another model of this manifest, or a checkpoint")
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

    @model_validator(mode="after")
    def _no_clean_sets(self) -> Self:
        for item in [*self.train, *self.validation]:
            if item.clean is not None:
                raise ValueError(f"set {item.name!r}: clean belongs to evaluation_sets; leave it out here")
        return self


class Seeds(Section):
    """Every seed of the run; ``pipeline study`` makes one run for each of ``study``, with all others set to it."""

    study: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(distinct)] = Field([0], min_length=1)
    training: Annotated[int, Field(ge=0)] = 0
    merging: Annotated[int, Field(ge=0)] = Field(0, description="what mixup draws")
    order: Annotated[int, Field(ge=0)] = Field(0, description="how a stream is reordered")


class Manifest(Section):
    """One study: its models, its evaluation sets and every setting that a result depends on."""

    name: Annotated[str, Field(min_length=1)]
    output: Annotated[str, Field(min_length=1)] = Field(
        description="run directory; relative to the manifest; {seed} stands for seeds.training, in checkpoints too"
    )
    archives: str = Field("../archives", description="folder of the archives, one per evaluation set")
    data_root: str | None = Field(
        None, description="folder in which published files are looked up; by default PIPELINE_DATA_ROOT"
    )
    pair: Pair | None = Field(None, description="generalist and expert; or sources")
    sources: Sources | None = Field(None, description="K source models instead of a pair")
    evaluation_sets: list[EvaluationSet] = Field([])
    methods: Annotated[list[str | dict[str, Any]], Field(min_length=1)] | Literal["all"] | None = Field(
        None,
        description="what `infer` computes by default: all, or a list of names, mappings of a name and settings, and "
        "all; by default every source and the rule's own method",
    )
    prompts: Prompts = Prompts()
    coefficient: Coefficient = Coefficient()
    grouping: Grouping = Grouping()
    compute: Compute = Compute()
    part_rows: Annotated[int, Field(ge=1)] = 8192
    seeds: Seeds = Seeds()
    finetune: dict[str, Training] = Field({}, description="by source name: how its checkpoint is made")

    @field_validator("methods", mode="before")
    @classmethod
    def _known_methods(cls, value: object, info: ValidationInfo) -> object:
        models = info.data.get("pair") or info.data.get("sources")
        # Without models, which then have a problem of their own, no name can be told to be unknown.
        if models is not None and value not in (None, ALL):
            check_entries(value, models.models if isinstance(models, Sources) else ROLES)
        return value

    @model_validator(mode="after")
    def _pair_or_sources(self) -> Self:
        if self.pair is None and self.sources is None:
            raise ValueError("pair is required: name a generalist and an expert there, or K models under sources")
        if self.pair is not None and self.sources is not None:
            raise ValueError("pair and sources are both set; a pair may lie among sources, so leave pair out")
        return self

    @model_validator(mode="after")
    def _known_trainings(self) -> Self:
        for name in self.finetune:
            if name not in self.checkpoints:
                known = ", ".join(self.checkpoints)
                raise ValueError(f"unknown key finetune.{name}{did_you_mean(name, self.checkpoints)}; known: {known}")
        return self

    @model_validator(mode="after")
    def _distinct_sets(self) -> Self:
        names = [item.name for item in self.evaluation_sets]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            msg = f"evaluation_sets must have distinct names, got {', '.join(repeated)} more than once"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _known_clean_sets(self) -> Self:
        names = [item.name for item in self.evaluation_sets]
        for item in self.evaluation_sets:
            others = [name for name in names if name != item.name]
            if item.clean is not None and item.clean not in others:
                raise ValueError(
                    f"evaluation set {item.name!r}: clean must name another evaluation set, got {item.clean!r}"
                    f"{did_you_mean(item.clean, others)}; the others are {', '.join(others) or 'none'}"
                )
        return self

    @property
    def checkpoints(self) -> dict[str, str | None]:
        """Reference of each source's checkpoint by name, in order; None where none is named yet."""
        if self.sources is not None:
            return dict(self.sources.models)
        return {role: getattr(self.pair, role) for role in ROLES}

    @property
    def architecture(self) -> str:
        """What all sources share."""
        return self._models.architecture

    @property
    def precision(self) -> Precision:
        """Of the image towers' forwards."""
        return self._models.precision

    @property
    def kind_settings(self) -> dict[str, Any]:
        """What a worker's numeric kind follows from besides its machine: arguments of ``kind_for_settings``."""
        compute = self.compute
        return {
            "device": compute.device,
            "precision": self.precision,
            "threads": compute.threads,
            "tile": compute.tile,
            "memory_format": compute.memory_format,
            "compiled": compute.compile,
        }

    @property
    def classes(self) -> int | None:
        """Class count of a classifier whose architecture does not say it."""
        return self._models.classes

    @property
    def models_section(self) -> str:
        """The section that names the models."""
        return "pair" if self.sources is None else "sources"

    @property
    def _models(self) -> Pair | Sources:
        models = self.pair or self.sources
        assert models is not None, "one of them is required"
        return models

    def checkpoint_key(self, name: str) -> str:
        """Where the manifest names a source's checkpoint."""
        return f"pair.{name}" if self.sources is None else f"sources.models.{name}"

    @property
    def selected_methods(self) -> list[str | dict[str, Any]]:
        """``methods``, or every source and, where they make a pair, the default rule with the grouping's kind.

        ``all`` are the sources and every method of the table that these models allow, labels or not.
        """
        if self.methods is not None:
            listed = [ALL] if self.methods == ALL else self.methods
            return [entry for item in listed for entry in (self._all_methods if item == ALL else [item])]
        own = self.coefficient.rule + GROUPINGS[self.grouping.kind].suffix
        return [*self.checkpoints, own if self.is_pair else "entropy-adaptive"]

    @property
    def _all_methods(self) -> list[str]:
        allowed = [name for name, method in METHODS.items() if not unmet_needs(method, self.checkpoints)]
        return list(dict.fromkeys([*self.checkpoints, *allowed]))

    @property
    def is_pair(self) -> bool:
        """Whether generalist and expert are among the sources."""
        return set(ROLES) <= self.checkpoints.keys()
