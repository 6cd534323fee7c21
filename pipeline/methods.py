"""The table of methods: a rule (evidence to weights), a grouping and a way to combine, with cost, source and settings.

A method is one line here. Rules live in :mod:`pipeline.coefficients`, static merges in :mod:`pipeline.merging.static`.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from pipeline.coefficients.rules import T3Settings
from pipeline.coefficients.streams import parse_order
from pipeline.settings import Setting

GroupingKind = Literal["arrival", "lambda", "mixture", "sample"]
Combination = Literal["source", "ensemble", "batch", "static", "grid"]

GENERALIST = "a generalist"
EXPERT = "an expert"
PAIR = "a generalist and an expert"
LABELS = "labels"
BASE = "a generalist and at least one expert"
SEVERAL = "at least two sources"

T3_PAPER = "T³, arXiv 2510.27265"
MIRAGE = "our reading of The Mean is the Mirage, arXiv 2602.21372"


@dataclass(frozen=True, slots=True)
class Method:
    """A row of a results table.

    ``combination`` says where the answer comes from: ``source`` and ``ensemble`` are read from evidence, ``batch``
    merges once per batch of a plan, ``static`` once per run, ``grid`` scores every point of a grid of λ.
    ``grouping`` ``sample`` gives every row its own λ: rows sorted by λ, one image per forward call.
    ``rule`` may be a function of the user's own, as ``module:function``.
    """

    name: str
    combination: Combination
    cost: str
    formula: str
    source: str
    needs: tuple[str, ...] = ()
    rule: str | None = None
    grouping: GroupingKind | None = None
    settings: tuple[Setting, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The row for ``pipeline methods --json``."""
        row = asdict(self)
        return row | {"needs": list(self.needs), "settings": [setting.as_json() for setting in self.settings]}


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    formula: str
    source: str
    needs: tuple[str, ...] = (PAIR,)
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class _Grouping:
    kind: GroupingKind
    suffix: str
    cost: str
    remark: str
    settings: tuple[Setting, ...]


_T3 = T3Settings()
T3_SETTINGS = (
    Setting("gamma", _T3.gamma, "γ of Eq. 10; the paper prints none, the authors' README says 0.5", above=0),
    Setting("delta", _T3.delta, "δ of Eq. 11", minimum=0, maximum=1),
    Setting("tau_generalist", _T3.tau_generalist, "entropy in nats below which the generalist is confident", minimum=0),
    Setting("tau_expert", _T3.tau_expert, "entropy in nats below which the expert is confident", minimum=0),
    Setting("lambda_min", _T3.lambda_min, "lower bound of Eq. 10", minimum=0, maximum=1),
    Setting("lambda_max", _T3.lambda_max, "upper bound of Eq. 10", minimum=0, maximum=1),
    Setting(
        "mapping",
        _T3.mapping,
        "sigmoid is Eq. 10 as printed; rescaled (ours) lets λ span its bounds",
        choices=("sigmoid", "rescaled"),
    ),
)

BATCH_SIZE = Setting("batch_size", 32, "rows per batch", minimum=1, maximum=65_536)
ORDER = Setting("order", "arrival", "stream: arrival, iid, dirichlet(ALPHA) or temporal", check=parse_order)
TOLERANCE = Setting(
    "tolerance", None, "largest |λ_i - λ_b|; null: batches of batch_size, mean λ", minimum=0, maximum=1, number=float
)
CLUSTERS = Setting("clusters", 3, "components of the Beta mixture over λ, per window", minimum=1, maximum=64)

GROUPINGS: Mapping[GroupingKind, _Grouping] = MappingProxyType(
    {
        grouping.kind: grouping
        for grouping in (
            _Grouping("sample", "", "O(2B)", "each sample by its own λ", ()),
            _Grouping(
                "arrival", "-batch", "O(1B)", "mean λ of consecutive rows (Eq. 12-13, T³_B)", (BATCH_SIZE, ORDER)
            ),
            _Grouping("lambda", "-lambda", "O(1B)", "rows sorted by λ inside a window (ours)", (BATCH_SIZE, TOLERANCE)),
            _Grouping(
                "mixture", "-mixture", "O(1B)", "one merge per cluster of a Beta mixture over λ (DaWin)", (CLUSTERS,)
            ),
        )
    }
)

_RULES = (
    _Rule(
        "t3",
        "λ = λ_min + (λ_max-λ_min)·σ(γ·JS(p_pt, p_ft)); +δ where H(p_ft) < τ_ft, else -δ where H(p_pt) < τ_pt",
        f"{T3_PAPER}, Eq. 5, 10, 11",
        settings=T3_SETTINGS,
    ),
    _Rule(
        "entropy-ratio",
        "λ = H_ft / (H_pt + H_ft); as printed, it favours the less certain model",
        f"{T3_PAPER}, Eq. 3",
    ),
    _Rule("dawin", "λ = exp(-H_ft) / (exp(-H_pt) + exp(-H_ft))", "DaWin, arXiv 2410.03782"),
    _Rule("confidence-ratio", "λ = max p_ft / (max p_pt + max p_ft)", f"{T3_PAPER}, Table 9"),
    _Rule(
        "x-entropy-ratio",
        "λ = ℓ_ft / (ℓ_pt + ℓ_ft), ℓ the cross-entropy against the label; as printed; analysis only",
        f"{T3_PAPER}, Eq. 4",
        needs=(PAIR, LABELS),
    ),
)
USER_LABELS = Setting(
    "labels", "hidden", "given: the rule may look at labels, and is then for analysis only", choices=("hidden", "given")
)
_OF_RULE = MappingProxyType({rule.name: rule for rule in _RULES})

ALPHA = Setting("alpha", 0.5, "weight of the expert", minimum=0, maximum=1)
_SCALE = "factor on the task vectors"

_OTHERS = (
    Method("generalist", "source", "0", "p_pt; read from evidence, no forward", "the pretrained model", (GENERALIST,)),
    Method("expert", "source", "0", "p_ft; read from evidence, no forward", "the fine-tuned model", (EXPERT,)),
    Method(
        "ensemble",
        "ensemble",
        "0",
        "mean of all sources' logits, or of their probabilities; read from evidence, no forward",
        f"{T3_PAPER}, Table 2",
        (SEVERAL,),
        settings=(Setting("mean_of", "logits", "what is averaged", choices=("logits", "probabilities")),),
    ),
    Method(
        "soup",
        "static",
        "O(1B)",
        "θ = (1-α)·θ_pt + α·θ_ft",
        "Model soups, arXiv 2203.05482",
        (PAIR,),
        settings=(ALPHA,),
    ),
    Method("mean", "static", "O(1B)", "θ = Σ_k θ_k / K", "Model soups, arXiv 2203.05482", (SEVERAL,)),
    Method(
        "task-arithmetic",
        "static",
        "O(1B)",
        "θ = θ_pt + s·Σ_k (θ_k - θ_pt) over all experts",
        "Task arithmetic, arXiv 2212.04089",
        (BASE,),
        settings=(Setting("scale", 0.3, _SCALE, minimum=0, maximum=10),),
    ),
    Method(
        "slerp",
        "static",
        "O(1B)",
        "per tensor θ = sin((1-α)Ω)/sin Ω·θ_pt + sin(αΩ)/sin Ω·θ_ft; linear where nearly parallel",
        "Shoemake 1985, doi 10.1145/325165.325242",
        (PAIR,),
        settings=(ALPHA,),
    ),
    Method(
        "ties",
        "static",
        "O(1B)",
        "θ = θ_pt + s·disjoint mean of the task vectors, trimmed to their largest entries, signs elected",
        "TIES-Merging, arXiv 2306.01708",
        (BASE,),
        settings=(
            Setting("density", 0.2, "fraction of a task vector's entries that is kept", above=0, maximum=1),
            Setting("scale", 1.0, _SCALE, minimum=0, maximum=10),
        ),
    ),
    Method(
        "mixup",
        "static",
        "O(1B)",
        "θ = (1-λ)·θ_pt + λ·θ_ft, λ drawn once per run from Beta(α, α) or U(0, 1); seeds.merging, recorded",
        "Mixup model merge (M³), arXiv 2502.15434",
        (PAIR,),
        settings=(
            Setting("distribution", "beta", "what λ is drawn from", choices=("beta", "uniform")),
            Setting("alpha", 0.5, "both parameters of the Beta distribution", above=0, maximum=1000),
        ),
    ),
    Method(
        "entropy-adaptive",
        "batch",
        "O(1B)",
        "θ = Σ_k w_k·θ_k per batch, w_k ∝ exp(-H̄_k/T), encoder and head with weights of their own",
        MIRAGE,
        (SEVERAL,),
        rule="entropy-adaptive",
        grouping="arrival",
        settings=(
            Setting("temperature", 1.0, "T of the encoder's weights, in nats", above=0),
            Setting(
                "temperature_head",
                None,
                "T of the head's weights; null: the head has the encoder's",
                above=0,
                number=float,
            ),
            BATCH_SIZE,
            ORDER,
        ),
    ),
    Method(
        "oracle",
        "grid",
        "O(GB)",
        "θ(λ*) with the λ* of a grid that is most often right on the set; analysis only: no constant λ does better",
        f"{T3_PAPER}, discussion of λ",
        (PAIR, LABELS),
        settings=(Setting("points", 11, "G, evenly spaced values of λ, 0 and 1 among them", minimum=3, maximum=1001),),
    ),
)


def rule_method(rule: _Rule, grouping: _Grouping) -> Method:
    """The method that groups a rule's λ in one way."""
    return Method(
        name=rule.name.replace(":", ".") + grouping.suffix,
        combination="batch",
        cost=grouping.cost,
        formula=f"{rule.formula}; {grouping.remark}",
        source=rule.source,
        needs=rule.needs,
        rule=rule.name,
        grouping=grouping.kind,
        settings=rule.settings + grouping.settings,
    )


def _rows() -> Iterator[Method]:
    plain, others = _OTHERS[:2], _OTHERS[2:]
    yield from plain
    for rule in _RULES:
        for grouping in GROUPINGS.values():
            yield rule_method(rule, grouping)
    yield from others


METHODS = MappingProxyType({method.name: method for method in _rows()})
RULE_NAMES = tuple(_OF_RULE)


def rule_settings(rule: str) -> tuple[Setting, ...]:
    """Settings of a rule's own; a user's rule has none that are known here."""
    if rule in _OF_RULE:
        return _OF_RULE[rule].settings
    return tuple(setting for setting in METHODS[rule].settings if setting not in GROUPINGS["arrival"].settings)


def source_method(name: str) -> Method:
    """The plain model of one of K sources."""
    return replace(METHODS["expert"], name=name, formula=f"p of {name}; read from evidence, no forward", needs=())


def user_method(reference: str) -> Method:
    """The method of a user's own rule, ``module:function`` with a grouping's suffix such as ``-batch``."""
    suffixes = sorted((grouping for grouping in GROUPINGS.values()), key=lambda found: -len(found.suffix))
    grouping = next(found for found in suffixes if reference.endswith(found.suffix))
    rule = reference.removesuffix(grouping.suffix) if grouping.suffix else reference
    described = _Rule(rule, f"λ = {rule}(evidence)", "the user's own function", settings=(USER_LABELS,))
    return rule_method(described, grouping)


def unmet_needs(method: Method, models: Collection[str]) -> list[str]:
    """Which of a method's needs models of these names do not meet; labels are not theirs to give."""
    met = {
        GENERALIST: "generalist" in models,
        EXPERT: "expert" in models,
        PAIR: {"generalist", "expert"} <= set(models),
        BASE: "generalist" in models and len(models) > 1,
        SEVERAL: len(models) > 1,
        LABELS: True,
    }
    return [need for need in method.needs if not met[need]]


def is_user_rule(rule: str) -> bool:
    """Whether a rule is a function of the user's own."""
    return ":" in rule
