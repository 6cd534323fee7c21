"""Methods at their settings, as a run computes, names and fingerprints them.

A setting comes from the entry that names the method, else from the manifest's section that speaks of it, else from the
table of methods.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.coefficients.rules import T3Settings
from pipeline.coefficients.streams import BY_LABEL, parse_order
from pipeline.errors import ManifestError
from pipeline.manifest.entries import check_entry
from pipeline.manifest.schema import Grouping, Manifest, Prompts
from pipeline.methods import GROUPINGS, LABELS, USER_LABELS, Method, is_user_rule
from pipeline.settings import Setting, Value
from pipeline.store.run_directory import Variant

EMBEDDING_FIELDS = {"embeddings", "curve_tolerance"}
WINDOW = "window"
SEED = "seed"


@dataclass(frozen=True, slots=True)
class Selected:
    """A method with every setting that its answers depend on, beyond the evidence.

    ``rule`` and ``grouping`` are set where λ or weights are cached, for methods that merge per batch.
    """

    method: Method
    settings: Mapping[str, Value]
    variant: Variant
    rule: Variant | None = None
    grouping: Variant | None = None

    @property
    def key(self) -> str:
        """What names the method at these settings: the folder of its predictions."""
        return self.variant.folder

    @property
    def weighs_sources(self) -> bool:
        """Whether a batch has one weight per source instead of a λ."""
        return self.rule is not None and self.rule.name == "entropy-adaptive"

    def t3_settings(self) -> T3Settings:
        """Settings of rule ``t3``."""
        fields = T3Settings.__slots__
        return T3Settings(**{name: self.settings[name] for name in fields})  # type: ignore[arg-type]

    def whole(self, name: str) -> int:
        """A setting that is a whole number."""
        value = self.settings[name]
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        """A setting that is a number."""
        value = self.settings[name]
        assert isinstance(value, int | float)
        return float(value)

    def number_or_none(self, name: str) -> float | None:
        """A setting that is a number, or not set."""
        return None if self.settings[name] is None else self.number(name)

    @property
    def sees_labels(self) -> bool:
        """Whether the method looks at labels, by its rule or by the stream that it is given: for analysis only."""
        order = parse_order(str(self.settings.get("order", "arrival"))).kind
        return LABELS in self.method.needs or self.gives_labels or order in BY_LABEL

    @property
    def gives_labels(self) -> bool:
        """Whether a user's rule is shown the labels."""
        return self.settings.get(USER_LABELS.name) == "given"

    def own_settings(self) -> dict[str, Value]:
        """Settings that a user's rule is called with."""
        assert self.rule is not None
        return {name: value for name, value in self.rule.settings.items() if name != USER_LABELS.name}


def select_methods(manifest: Manifest, names: Sequence[str] = ()) -> list[Selected]:
    """The manifest's methods, or those of ``names``: as the manifest has them, each as often, else at its settings.

    ManifestError for a name that is no method.
    """
    entries = [check_entry(entry, manifest.checkpoints) for entry in manifest.selected_methods]
    if names:
        chosen = []
        for name in dict.fromkeys(names):
            try:
                method, given = check_entry(name, manifest.checkpoints)
            except ValueError as error:
                raise ManifestError(f"--method: {error}") from error
            known = [entry for entry in entries if entry[0].name == method.name]
            chosen += known or [(method, given)]
        entries = chosen
    return _distinct(select(manifest, method, given) for method, given in entries)


def own_method(manifest: Manifest) -> Selected:
    """The default rule with the grouping's kind: what ``precompute`` caches λ for, whatever the methods are."""
    name = manifest.coefficient.rule + GROUPINGS[manifest.grouping.kind].suffix
    method, given = check_entry(name, manifest.checkpoints)
    return select(manifest, method, given)


def select(manifest: Manifest, method: Method, given: Mapping[str, Value]) -> Selected:
    """One method with the settings ``given``, and all others from the manifest or the table."""
    values = {setting.name: _value(manifest, method, setting, given) for setting in method.settings}
    if values.get("lambda_min", 0) > values.get("lambda_max", 1):  # type: ignore[operator]
        low, high = values["lambda_min"], values["lambda_max"]
        raise ManifestError(f"{method.name}: lambda_min must be <= lambda_max, got {low} and {high}")
    own = {name: value for name, value in given.items() if name not in values}
    changed = {setting.name: values[setting.name] for setting in method.settings if _differs(setting, values)} | own
    if method.combination != "batch":
        return _unbatched(manifest, method, values, changed)
    assert method.rule is not None
    assert method.grouping is not None
    of_grouping = {setting.name for setting in GROUPINGS[method.grouping].settings}
    rule_values = {name: value for name, value in (values | own).items() if name not in of_grouping}
    rule = _part(method.rule.replace(":", "."), rule_values, changed)
    window, window_default = manifest.grouping.window.model_dump(), Grouping().window.model_dump()
    grouping_values: dict[str, Any] = {name: values[name] for name in of_grouping} | {WINDOW: window}
    changed_window: dict[str, Any] = {WINDOW: window} if window != window_default else {}
    if values.get("order", "arrival") != "arrival":
        grouping_values[SEED] = manifest.seeds.order
        changed_window |= {SEED: manifest.seeds.order} if manifest.seeds.order else {}
    grouping = _part(method.grouping, grouping_values, changed | changed_window)
    embeddings = Variant("", {}, {}) if method.rule == "entropy-adaptive" else embeddings_variant("", manifest.prompts)
    variant = Variant(
        method.name,
        {
            "rule": {"name": method.rule, **rule.settings},
            "grouping": {"name": grouping.name, **grouping.settings},
            **embeddings.settings,
        },
        {**rule.changed, **grouping.changed, **embeddings.changed},
    )
    return Selected(method, values, variant, rule, grouping)


def embeddings_variant(evaluation_set: str, prompts: Prompts) -> Variant:
    """Class embeddings of an evaluation set: a curve within its tolerance, or exact heads, each in its own folder."""
    settings, defaults = prompts.model_dump(include=EMBEDDING_FIELDS), Prompts().model_dump(include=EMBEDDING_FIELDS)
    return _part(
        evaluation_set, settings, {name: settings[name] for name in settings if settings[name] != defaults[name]}
    )


def require_code_allowed(selected: Iterable[Selected], *, allowed: bool) -> None:
    """:class:`ManifestError` when a rule is the user's own code and nobody said that it may run."""
    for item in selected:
        if item.method.rule is not None and is_user_rule(item.method.rule) and not allowed:
            raise ManifestError(
                f"methods: {item.method.rule} is code of your own, which runs only with --allow-code; "
                "add that, or name a rule from `pipeline methods`"
            )


def _value(manifest: Manifest, method: Method, setting: Setting, given: Mapping[str, Value]) -> Value:
    if setting.name in given:
        return given[setting.name]
    sections = [manifest.coefficient] if method.rule == "t3" else []
    for section in (*sections, manifest.grouping):
        if method.combination == "batch" and setting.name in type(section).model_fields:
            value: Value = getattr(section, setting.name)
            return value
    return setting.default


def _differs(setting: Setting, values: Mapping[str, Value]) -> bool:
    return values[setting.name] != setting.default


def _unbatched(manifest: Manifest, method: Method, values: dict[str, Value], changed: dict[str, Value]) -> Selected:
    settings: dict[str, Any] = dict(values)
    if method.name == "mixup":
        settings[SEED] = manifest.seeds.merging
        changed |= {SEED: manifest.seeds.merging} if manifest.seeds.merging else {}
    if method.combination == "grid":
        embeddings = embeddings_variant("", manifest.prompts)
        settings |= embeddings.settings
        changed |= embeddings.changed
    return Selected(method, values, Variant(method.name, settings, changed))


def _part(name: str, settings: Mapping[str, Any], changed: Mapping[str, Any]) -> Variant:
    return Variant(name, dict(settings), {key: value for key, value in changed.items() if key in settings})


def _distinct(selected: Iterable[Selected]) -> list[Selected]:
    return list({item.key: item for item in selected}.values())
