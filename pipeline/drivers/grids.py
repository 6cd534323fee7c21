"""Grids of settings, which ``pipeline sweep`` tries: from a command line, or as one of the paper's ablations."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType

from pipeline.errors import ManifestError
from pipeline.manifest.entries import RESERVED, USER_RULE, check_settings, did_you_mean, find_method
from pipeline.manifest.schema import Manifest
from pipeline.methods import GROUPINGS, METHODS, RULE_NAMES, Method, is_user_rule
from pipeline.settings import Value
from pipeline.stages.selection import Selected, select

MAX_SETTINGS = 1000
SETTING_NAMES = tuple(
    dict.fromkeys(s.name for method in METHODS.values() if method.rule in RULE_NAMES for s in method.settings)
)


@dataclass(frozen=True, slots=True)
class Grid:
    """Every combination of ``values`` (text, by setting) that a method has, for each rule with each grouping.

    Without rules or groupings, those of the manifest. Settings that are not named stay as the manifest has them.
    """

    rules: tuple[str, ...] = ()
    groupings: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """The grid as ``run.json`` keeps it."""
        return {
            "rules": list(self.rules),
            "groupings": list(self.groupings),
            "values": {name: list(values) for name, values in self.values.items()},
        }


@dataclass(frozen=True, slots=True)
class Preset:
    """A named grid for one of the ablations of T³ (arXiv 2510.27265): ``shows`` says what it varies, and on what word.

    Only the confidence ratio is known to stand in the paper's Table 9. The paper's appendix could not be consulted for
    the others: which number has which setting is our assignment, the values are those that this project was asked for.
    """

    shows: str
    grid: Grid


_GAMMA: Mapping[str, tuple[str, ...]] = {"gamma": ("0.5", "1", "2", "4")}
_DELTA: Mapping[str, tuple[str, ...]] = {"delta": ("0", "0.2", "0.3", "0.5", "0.6")}
_BATCH_SIZE = {"batch_size": ("1", "16", "32", "64", "128", "256")}
_RULES = ("t3", "dawin", "entropy-ratio", "confidence-ratio")

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "table-8": Preset("the extrapolation δ of Eq. 11 (our assignment)", Grid(("t3",), ("arrival",), _DELTA)),
        "table-9": Preset(
            "what λ is made of: divergence, entropies or confidences (the confidence ratio is from this table)",
            Grid(_RULES, ("arrival",)),
        ),
        "table-10": Preset("the batch size of T³_B (our assignment)", Grid(("t3",), ("arrival",), _BATCH_SIZE)),
        "figure-6": Preset(
            "every kind of coefficient at every batch size (our assignment)", Grid(_RULES, ("arrival",), _BATCH_SIZE)
        ),
        "figure-9": Preset("γ of Eq. 10 against δ (our assignment)", Grid(("t3",), ("arrival",), {**_GAMMA, **_DELTA})),
        "figure-10": Preset(
            "γ under both mappings of the divergence to λ (our assignment; rescaled is ours)",
            Grid(("t3",), ("arrival",), {**_GAMMA, "mapping": ("sigmoid", "rescaled")}),
        ),
    }
)


def find_preset(table: int | None, figure: int | None) -> Preset | None:
    """The preset of a table or figure of the paper; None where neither is named. ManifestError for an unknown one."""
    if table is not None and figure is not None:
        raise ManifestError("--table and --figure: are two presets; give one of them")
    if table is None and figure is None:
        return None
    name = f"table-{table}" if table is not None else f"figure-{figure}"
    if name not in PRESETS:
        known = ", ".join(f"--{known.replace('-', ' ')}" for known in PRESETS)
        raise ManifestError(f"--{name.replace('-', ' ')}: is no sweep; known: {known}")
    return PRESETS[name]


def read_grid(
    rules: Sequence[str],
    groupings: Sequence[str],
    values: Mapping[str, Sequence[str] | None],
    assignments: Sequence[str] = (),
    preset: Preset | None = None,
) -> Grid:
    """Grid of comma lists as given on a command line; what is given replaces what ``preset`` has.

    ``assignments`` are ``NAME=VALUE,VALUE`` for settings without an option of their own. ManifestError when a list is
    empty, when an assignment is none, and when nothing is given at all.
    """
    given = {name: _split(f"--{_option(name)}", texts) for name, texts in values.items() if texts}
    for assignment in assignments:
        name, sign, listed = assignment.partition("=")
        if not sign or not name:
            raise ManifestError(f"--set {assignment}: must be NAME=VALUE,VALUE")
        given[name.strip()] = _split(f"--set {name}", [listed])
    base = preset.grid if preset else Grid()
    grid = Grid(
        _split("--rule", rules) if rules else base.rules,
        _split("--grouping", groupings) if groupings else base.groupings,
        {**base.values, **given},
    )
    if grid == Grid():
        raise ManifestError("sweep: nothing to vary; give settings such as --gamma 0.5,1,2,4, or a --table")
    return grid


def expand(grid: Grid, manifest: Manifest, limit: int = MAX_SETTINGS) -> list[Selected]:
    """Methods at all settings of the grid, in its order, each once.

    A setting applies to the methods that have it. ManifestError names an unknown rule, grouping or setting, a setting
    that no method of the grid has together with those that do, a value out of range, and a grid above ``limit``.
    """
    methods = _methods(grid, manifest)
    for name in grid.values:
        if not any(_has(method, name) for method in methods):
            raise ManifestError(_nobody_has(name, methods))
    checked = [(method, _checked(method, grid)) for method in methods]
    count = sum(math.prod(len(values) for values in settings.values()) for _, settings in checked)
    if count > limit:
        raise ManifestError(
            f"sweep: {count:,} settings are more than the limit of {limit:,}; "
            "name fewer values, or raise --max-settings"
        )
    chosen = (
        select(manifest, method, dict(zip(settings, combination, strict=True)))
        for method, settings in checked
        for combination in product(*settings.values())
    )
    return list({selected.key: selected for selected in chosen}.values())


def _methods(grid: Grid, manifest: Manifest) -> list[Method]:
    for rule in grid.rules:
        if rule not in RULE_NAMES and ("-" in rule or not USER_RULE.fullmatch(rule)):
            known = ", ".join(RULE_NAMES)
            near = did_you_mean(rule, RULE_NAMES)
            raise ManifestError(f"--rule: unknown rule {rule!r}{near}; known: {known}, or module:function")
    suffixes: dict[str, str] = {kind: found.suffix for kind, found in GROUPINGS.items()}
    for kind in grid.groupings:
        if kind not in suffixes:
            near = did_you_mean(kind, suffixes)
            raise ManifestError(f"--grouping: unknown grouping {kind!r}{near}; known: {', '.join(suffixes)}")
    kinds = grid.groupings or (manifest.grouping.kind,)
    rules = grid.rules or (manifest.coefficient.rule,)
    return [find_method(rule + suffixes[kind], manifest.checkpoints) for rule in rules for kind in kinds]


def _has(method: Method, setting: str) -> bool:
    if any(known.name == setting for known in method.settings):
        return True
    return method.rule is not None and is_user_rule(method.rule) and setting not in RESERVED


def _nobody_has(setting: str, methods: Iterable[Method]) -> str:
    names = ", ".join(method.name for method in methods)
    groupings = [kind for kind, found in GROUPINGS.items() if setting in {known.name for known in found.settings}]
    rules = [rule for rule in RULE_NAMES if setting in {known.name for known in METHODS[rule].settings}]
    if groupings:
        return f"--{_option(setting)}: {names} has no such setting; add --grouping {' or '.join(groupings)}"
    if rules:
        return f"--{_option(setting)}: {names} has no such setting; add --rule {' or '.join(rules)}"
    near = did_you_mean(setting, SETTING_NAMES)
    return f"sweep: no rule or grouping has a setting {setting!r}{near}; known: {', '.join(SETTING_NAMES)}"


def _checked(method: Method, grid: Grid) -> dict[str, tuple[Value, ...]]:
    """Distinct values of the grid's settings that a method has, in the grid's order."""
    settings = {}
    for name, texts in grid.values.items():
        if _has(method, name):
            try:
                values = [check_settings(method, {name: _read(method, name, text)})[name] for text in texts]
            except ValueError as error:
                raise ManifestError(f"--{_option(name)}: {error}") from error
            settings[name] = tuple(dict.fromkeys(values))
    return settings


def _read(method: Method, name: str, text: str) -> Value:
    """Text as it is for settings that are known here, else as the number that it spells."""
    if any(known.name == name for known in method.settings):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _split(option: str, texts: Sequence[str]) -> tuple[str, ...]:
    values = [value.strip() for text in texts for value in text.split(",")]
    if not all(values):
        raise ManifestError(f"{option}: has an empty value in {','.join(texts)!r}; give values such as 1,2")
    return tuple(dict.fromkeys(values))


def _option(setting: str) -> str:
    return setting.replace("_", "-")
