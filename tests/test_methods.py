"""The table of methods and the settings in it: what is listed, and how a value given as text or YAML is checked."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.coefficients.streams import parse_order
from pipeline.manifest.entries import check_entry
from pipeline.methods import METHODS, unmet_needs
from pipeline.settings import Setting, Value

SOURCES = ["generalist", "expert"]
GROUPED = [
    rule + suffix
    for rule in ("t3", "entropy-ratio", "dawin", "confidence-ratio", "x-entropy-ratio")
    for suffix in ("", "-batch", "-lambda", "-mixture")
]
ASKED = [
    *SOURCES,
    "ensemble",
    "soup",
    "task-arithmetic",
    "slerp",
    "ties",
    "mixup",
    *GROUPED,
    "oracle",
    "entropy-adaptive",
    "mean",
]
# What the issue states and the sources print.
DEFAULTS: dict[str, dict[str, Value]] = {
    "ensemble": {"mean_of": "logits"},
    "soup": {"alpha": 0.5},
    "task-arithmetic": {"scale": 0.3},
    "slerp": {"alpha": 0.5},
    "ties": {"density": 0.2, "scale": 1.0},
    "mixup": {"distribution": "beta", "alpha": 0.5},
    "t3": {
        "gamma": 1.0,
        "delta": 0.5,
        "tau_generalist": 0.05,
        "tau_expert": 0.05,
        "lambda_min": 0.0,
        "lambda_max": 1.0,
        "mapping": "sigmoid",
    },
    "dawin-batch": {"batch_size": 32, "order": "arrival"},
    "dawin-lambda": {"batch_size": 32, "tolerance": None},
    "dawin-mixture": {"clusters": 3},
    "entropy-adaptive": {"temperature": 1.0, "temperature_head": None, "batch_size": 32, "order": "arrival"},
    "oracle": {"points": 11},
    "mean": {},
}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What ``pipeline methods ARGUMENTS`` prints."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["pipeline", "methods", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        assert not left.value.code, err
        return out

    return run


def test_the_json_list_names_every_method_once_with_all_that_a_choice_needs(listed: Callable[..., str]) -> None:
    methods = json.loads(listed("--json"))
    assert isinstance(methods, list)
    assert Counter(method["name"] for method in methods) == Counter(ASKED)
    for method in methods:
        for text in ("name", "formula", "source", "cost"):
            assert isinstance(method[text], str)
            assert method[text], method["name"]
        assert all(isinstance(need, str) and need for need in method["needs"])
        for setting in method["settings"]:
            assert {"name", "default", "help"} <= setting.keys()
            assert setting["help"]
    defaults = {method["name"]: {entry["name"]: entry["default"] for entry in method["settings"]} for method in methods}
    assert {name: defaults[name] for name in DEFAULTS} == DEFAULTS


def test_the_list_says_which_methods_need_labels_and_what_each_costs(listed: Callable[..., str]) -> None:
    methods = {method["name"]: method for method in json.loads(listed("--json"))}
    labelled = {name for name, method in methods.items() if "labels" in method["needs"]}
    assert labelled == {"oracle", *(name for name in GROUPED if name.startswith("x-entropy-ratio"))}
    assert {methods[name]["cost"] for name in ("generalist", "expert", "ensemble")} == {"0"}
    assert {methods[name]["cost"] for name in ("soup", "ties", "mean", "t3-batch", "dawin-mixture")} == {"O(1B)"}
    assert {methods[name]["cost"] for name in ("t3", "dawin", "entropy-ratio")} == {"O(2B)"}
    (scale,) = methods["task-arithmetic"]["settings"]
    assert (scale["minimum"], scale["maximum"]) == (0, 10)
    assert {entry["name"]: entry.get("choices") for entry in methods["mixup"]["settings"]} == {
        "distribution": ["beta", "uniform"],
        "alpha": None,
    }


def test_the_list_for_people_has_every_method_with_its_settings(listed: Callable[..., str]) -> None:
    text = listed()
    lines = text.splitlines()
    for name in ASKED:
        assert any(line.split(maxsplit=1)[:1] == [name] for line in lines if line[:1] not in {"", " "}), name
    assert "alpha=0.5" in text
    assert "arXiv 2306.01708" in text
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", METHODS)
def test_the_default_of_every_setting_passes_its_own_check(name: str) -> None:
    for setting in METHODS[name].settings:
        assert setting.parse(setting.default) == setting.default
        assert setting.parse("null" if setting.default is None else str(setting.default)) == setting.default


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_an_entry_with_and_without_settings(name: str) -> None:
    method, given = check_entry(name, SOURCES)
    assert (method.name, given) == (name, {})
    settings = {setting.name: setting.default for setting in method.settings}
    assert check_entry({"name": name, **settings}, SOURCES) == (method, settings)


ANY_SEVERAL = {"ensemble", "mean", "entropy-adaptive"}
WITH_A_BASE = {"task-arithmetic", "ties"}
OF_A_PAIR = {"soup", "slerp", "mixup", "oracle", *GROUPED}


@pytest.mark.parametrize(
    ("models", "met"),
    [
        (["generalist"], {"generalist"}),
        (["generalist", "expert"], {"generalist", "expert", *ANY_SEVERAL, *WITH_A_BASE, *OF_A_PAIR}),
        (["generalist", "a", "b"], {"generalist", *ANY_SEVERAL, *WITH_A_BASE}),
        (["a", "b", "c"], ANY_SEVERAL),
        (["expert", "a"], {"expert", *ANY_SEVERAL}),
    ],
)
def test_a_method_is_offered_to_the_models_that_it_can_merge(models: list[str], met: set[str]) -> None:
    assert {name for name, method in METHODS.items() if not unmet_needs(method, models)} == met


FRACTION = Setting("alpha", 0.5, "", minimum=0, maximum=1)
POSITIVE = Setting("gamma", 1.0, "", above=0)
COUNT = Setting("batch_size", 32, "", minimum=1, maximum=65_536)
OPTIONAL = Setting("tolerance", None, "", minimum=0, maximum=1, number=float)
CHOICE = Setting("mapping", "sigmoid", "", choices=("sigmoid", "rescaled"))
ORDER = Setting("order", "arrival", "", check=lambda text: parse_order(str(text)))


@pytest.mark.parametrize(
    ("setting", "given", "expected"),
    [
        (FRACTION, 0.4, 0.4),
        (FRACTION, "0.4", 0.4),
        (FRACTION, "1", 1.0),
        (FRACTION, 0, 0.0),
        (FRACTION, "1e-3", 0.001),
        (POSITIVE, 1e-9, 1e-9),
        (COUNT, 16, 16),
        (COUNT, "16", 16),
        (COUNT, 16.0, 16),
        (COUNT, 65_536, 65_536),
        (OPTIONAL, None, None),
        (OPTIONAL, "null", None),
        (OPTIONAL, 0, 0.0),
        (OPTIONAL, "0.25", 0.25),
        (CHOICE, "rescaled", "rescaled"),
        (ORDER, "temporal", "temporal"),
        (ORDER, "dirichlet(0.05)", "dirichlet(0.05)"),
    ],
)
def test_a_setting_takes_values_from_yaml_and_from_text(setting: Setting, given: object, expected: Value) -> None:
    found = setting.parse(given)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("setting", "given", "said"),
    [
        (FRACTION, 1.5, "alpha must be <= 1, got 1.5"),
        (FRACTION, "-0.1", "alpha must be >= 0, got -0.1"),
        (FRACTION, "half", "alpha must be a number, got 'half'"),
        (FRACTION, None, "alpha must be a number, got None"),
        (FRACTION, True, "alpha must be a number, got True"),
        (FRACTION, "nan", "alpha must be a number, got 'nan'"),
        (FRACTION, float("nan"), "alpha must be a number, got nan"),
        (POSITIVE, float("inf"), "gamma must be a number, got inf"),
        (FRACTION, [0.5], "alpha must be a number, got [0.5]"),
        (FRACTION, "", "alpha must be a number, got ''"),
        (POSITIVE, 0, "gamma must be > 0, got 0"),
        (COUNT, 0, "batch_size must be >= 1, got 0"),
        (COUNT, 65_537, "batch_size must be <= 65536, got 65537"),
        (COUNT, 16.5, "batch_size must be a whole number, got 16.5"),
        (COUNT, "16.5", "batch_size must be a whole number, got '16.5'"),
        (COUNT, float("inf"), "batch_size must be a whole number, got inf"),
        (COUNT, float("nan"), "batch_size must be a whole number, got nan"),
        (COUNT, False, "batch_size must be a whole number, got False"),
        (OPTIONAL, "none", "tolerance must be a number, got 'none'"),
        (OPTIONAL, 2, "tolerance must be <= 1, got 2"),
        (OPTIONAL, True, "tolerance must be a number, got True"),
        (CHOICE, "linear", "mapping must be sigmoid or rescaled, got 'linear'"),
        (CHOICE, 1, "mapping must be text, got 1"),
        (CHOICE, None, "mapping must be text, got None"),
        (ORDER, "dirichlet", "order must be arrival, iid, temporal or dirichlet(ALPHA)"),
        (ORDER, "dirichlet(0)", "got 'dirichlet(0)'"),
        (ORDER, "dirichlet(-1)", "got 'dirichlet(-1)'"),
        (ORDER, "random", "got 'random'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_bound(setting: Setting, given: Any, said: str) -> None:
    with pytest.raises(ValueError, match="must be") as refused:
        setting.parse(given)
    assert said in str(refused.value)
    assert str(refused.value).startswith(setting.name)
    assert "\n" not in str(refused.value)
