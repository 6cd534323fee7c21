"""Manifests that are refused: the problem is named by its place, with what is known or what to do."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ManifestError, ProblemsError
from pipeline.manifest import load_manifest
from tests.manifest.factory import MINIMAL, SOURCES, Write, of_sources, problems

SYNTHETIC = MINIMAL["evaluation_sets"]
TRAINING = {"init": "random", "train": SYNTHETIC, "validation": SYNTHETIC}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"coefficient__gama": 1}, "unknown key coefficient.gama; did you mean gamma?; known: rule, gamma, delta"),
        ({"evaluation_set": []}, "unknown key evaluation_set; did you mean evaluation_sets?; known: name, output"),
        ({"grouping__batch-size": 8}, "unknown key grouping.batch-size; did you mean batch_size?"),
        ({"grouping__window__row": 8}, "unknown key grouping.window.row; did you mean rows?; known: rows, bytes"),
        ({"npz": 1}, "unknown key npz; known: name, output"),
        ({"seeds__trainig": 1}, "unknown key seeds.trainig; did you mean training?; known: study, training"),
        (
            {"evaluation_sets": [{"name": "x", "source": {"kind": "synthetic", "count": 3, "sead": 1}}]},
            "unknown key evaluation_sets[0].source[0].sead; did you mean seed?; known: kind, count, seed",
        ),
        (
            {"evaluation_sets": [{"name": "x", "source": {"kind": "medmist", "flag": "x", "split": "test"}}]},
            "evaluation_sets[0].source[0].kind: unknown source 'medmist'; did you mean medmnist?; known: medmnist, npz",
        ),
    ],
    ids=str,
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    write: Write, entries: dict[str, Any], expected: str
) -> None:
    (found,) = problems(write(**entries))
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"coefficient__gamma": -1}, "coefficient.gamma must be > 0, got -1"),
        ({"coefficient__gamma": 0}, "coefficient.gamma must be > 0, got 0"),
        ({"coefficient__delta": 1.5}, "coefficient.delta must be <= 1, got 1.5"),
        ({"coefficient__tau_expert": -0.1}, "coefficient.tau_expert must be >= 0, got -0.1"),
        ({"grouping__batch_size": 0}, "grouping.batch_size must be >= 1, got 0"),
        ({"grouping__batch_size": 65537}, "grouping.batch_size must be <= 65536, got 65537"),
        ({"grouping__clusters": 0}, "grouping.clusters must be >= 1, got 0"),
        ({"seeds__order": -1}, "seeds.order must be >= 0, got -1"),
        ({"grouping__tolerance": 1.5}, "grouping.tolerance must be <= 1, got 1.5"),
        ({"compute__tile": 0}, "compute.tile must be >= 1, got 0"),
        ({"part_rows": 0}, "part_rows must be >= 1, got 0"),
        (
            {"evaluation_sets": [{"name": "x", "source": {"kind": "synthetic", "count": 0}}]},
            "evaluation_sets[0].source[0].count must be >= 1, got 0",
        ),
        (
            {"coefficient": {"lambda_min": 0.6, "lambda_max": 0.4}},
            "coefficient: lambda_min must be <= lambda_max, got 0.6 and 0.4",
        ),
    ],
    ids=str,
)
def test_a_value_out_of_bounds_is_named_with_its_bound(write: Write, entries: dict[str, Any], expected: str) -> None:
    assert problems(write(**entries)) == [expected]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("key", ["coefficient__gamma", "coefficient__tau_expert", "prompts__curve_tolerance"])
def test_a_number_that_is_not_finite_is_refused(write: Write, key: str, value: float) -> None:
    """γ = inf would make λ NaN where the models agree."""
    (found,) = problems(write(**{key: value}))
    assert found.startswith(key.replace("__", "."))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"coefficient": 3}, "coefficient: "),
        ({"coefficient__gamma": "much"}, "coefficient.gamma: "),
        ({"compute__tile": 2.5}, "compute.tile: "),
        ({"output": 3}, "output: "),
        ({"prompts__templates": "a photo of {}"}, "prompts.templates: "),
        ({"evaluation_sets": None}, "evaluation_sets: "),
        ({"evaluation_sets": [{"name": "x", "source": []}]}, "evaluation_sets[0].source: "),
        ({"evaluation_sets": [{"name": "x", "source": {}}]}, "evaluation_sets[0].source[0]: "),
        ({"pair__precision": "fp8"}, "pair.precision: input should be 'fp32', 'bf16' or 'fp16', got 'fp8'"),
        (
            {"coefficient__mapping": "rescale"},
            "coefficient.mapping: input should be 'sigmoid' or 'rescaled', got 'resc",
        ),
        ({"grouping__kind": "mix"}, "grouping.kind: input should be 'arrival', 'lambda' or 'mixture', got 'mix'"),
        ({"methods": 3}, "methods: must be all, or a list of names and of mappings of a name and settings"),
        ({"methods": "t3"}, "methods: must be all, or a list of names and of mappings of a name and settings"),
        ({"methods": []}, "methods: must be all, or a list of names and of mappings of a name and settings"),
        ({"methods": ["t3", 3]}, "methods[1]: must be a name, or a mapping of a name and settings"),
        ({"compute__device": "gpu"}, "compute.device: input should be 'auto', 'cpu' or 'cuda', got 'gpu'"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_named(write: Write, entries: dict[str, Any], expected: str) -> None:
    (found,) = problems(write(**entries))
    assert found.startswith(expected)
    assert ", got " in found


def test_keys_that_are_no_strings_are_refused(write: Write) -> None:
    path = write()
    path.write_text(path.read_text() + "1: x\n")
    assert problems(path) == ["[1]: keys should be strings, got 1"]


def test_missing_keys_are_named(write: Write) -> None:
    assert problems(write(pair={"expert": "x.pt"})) == ["pair.architecture is required", "pair.generalist is required"]


def test_all_wrong_entries_of_methods_are_named_at_once(write: Write) -> None:
    found = problems(write(methods=["t3-btach", "t3", {"name": "soup", "alpha": 7}, 3], part_rows=0))
    wrong = [line.partition(":")[0].partition(" must")[0] for line in found]
    assert wrong == ["methods[0]", "methods[2]", "methods[3]", "part_rows"]
    assert found[0].startswith("methods[0]: unknown method 't3-btach'; did you mean t3-batch?")


def test_an_unknown_method_is_refused_with_the_nearest_one(write: Write) -> None:
    (found,) = problems(write(methods=["t3", "t3-lamda"]))
    assert found.startswith(
        "methods[1]: unknown method 't3-lamda'; did you mean t3-lambda?; `pipeline methods` lists all"
    )


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"name": "sup", "alpha": 0.4}, "unknown method 'sup'; did you mean soup?; `pipeline methods` lists"),
        ({"name": "soup", "alpah": 0.4}, "soup has no setting 'alpah'; did you mean alpha?; known: alpha"),
        ({"name": "generalist", "alpha": 0.4}, "generalist has no setting 'alpha'; known: none"),
        ({"name": "soup", "alpha": 1.5}, "soup: alpha must be <= 1, got 1.5"),
        ({"name": "soup", "alpha": -0.1}, "soup: alpha must be >= 0, got -0.1"),
        ({"name": "soup", "alpha": None}, "soup: alpha must be a number, got None"),
        ({"name": "soup", "alpha": True}, "soup: alpha must be a number, got True"),
        ({"name": "ties", "density": 0}, "ties: density must be > 0, got 0"),
        ({"name": "t3", "gamma": 0}, "t3: gamma must be > 0, got 0"),
        ({"name": "t3", "gamma": float("nan")}, "t3: gamma must be a number, got nan"),
        ({"name": "t3", "mapping": "rescale"}, "t3: mapping must be sigmoid or rescaled, got 'rescale'"),
        ({"name": "t3-batch", "batch_size": 8.5}, "t3-batch: batch_size must be a whole number, got 8.5"),
        ({"name": "t3-batch", "tolerance": 0.1}, "t3-batch has no setting 'tolerance'; known: gamma, delta"),
        ({"name": "mixup", "distribution": "gamma"}, "mixup: distribution must be beta or uniform, got 'gamma'"),
        ({"name": "entropy-adaptive", "temperature_head": 0}, "entropy-adaptive: temperature_head must be > 0, got 0"),
        ({"name": "oracle", "points": 2}, "oracle: points must be >= 3, got 2"),
        ({"alpha": 0.4}, "name is required, got {'alpha': 0.4}"),
        ({"name": 3}, "name is required, got {'name': 3}"),
    ],
    ids=str,
)
def test_a_wrong_entry_of_methods_is_named_by_its_place(write: Write, entry: dict[str, Any], expected: str) -> None:
    (found,) = problems(write(methods=["t3", entry]))
    assert found.startswith(f"methods[1]: {expected}")


@pytest.mark.parametrize("order", ["dirichlet", "dirichlet(0)", "dirichlet(-1)", "dirichlet(inf)", "random", 3])
def test_an_unknown_order_is_refused_wherever_it_stands(write: Write, order: object) -> None:
    (in_section,) = problems(write(grouping__order=order))
    assert in_section.startswith("grouping.order: ")
    (in_entry,) = problems(write(methods=[{"name": "t3-batch", "order": order}]))
    assert in_entry.startswith("methods[0]: t3-batch: order")
    for found in (in_section, in_entry):
        assert found.endswith(f"got {order!r}")


@pytest.mark.parametrize("rule", ["dawn", "t3-batch", "module", ":margin", "clinic.rules:margin-batch", "a b:c"])
def test_an_unknown_rule_is_refused_with_the_known_ones(write: Write, rule: str) -> None:
    (found,) = problems(write(coefficient__rule=rule))
    assert found.startswith(f"coefficient.rule: unknown rule {rule!r}")
    assert "known: t3, entropy-ratio, dawin, confidence-ratio, x-entropy-ratio, or module:function" in found
    assert ("did you mean dawin?" in found) == (rule == "dawn")


def test_models_are_a_pair_or_sources(write: Write) -> None:
    assert problems(write(sources=SOURCES)) == [
        "pair and sources are both set; a pair may lie among sources, so leave pair out"
    ]
    path = write()
    content = yaml.safe_load(path.read_text())
    del content["pair"]
    path.write_text(yaml.safe_dump(content))
    assert problems(path) == ["pair is required: name a generalist and an expert there, or K models under sources"]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ({"a": "x.pt"}, "sources.models: dictionary should have at least 2 items"),
        ({"soup": "x.pt", "b": "y.pt"}, "sources.models: 'soup' is a word of this program; give the model another"),
        ({"merged": "x.pt", "b": "y.pt"}, "sources.models: 'merged' is a word of this program; give the model another"),
        ({"prompts": "x.pt", "b": "y.pt"}, "sources.models: 'prompts' is a word of this program; give the model"),
        ({"a/b": "x.pt", "b": "y.pt"}, "sources.models: 'a/b' must be letters, digits, '.', '_' or '-'"),
        ({"a:b": "x.pt", "b": "y.pt"}, "sources.models: 'a:b' must be letters, digits, '.', '_' or '-'"),
        ({"a": "x.pt", "b": None}, "sources.models.b: input should be a valid string, got None"),
    ],
    ids=str,
)
def test_a_source_that_cannot_be_is_named(write: Write, models: dict[str, Any], expected: str) -> None:
    (found,) = problems(of_sources(write(), models=models))
    assert found.startswith(expected)


def test_an_unknown_source_is_no_method(write: Write) -> None:
    (found,) = problems(of_sources(write(methods=["site-1", "site-4"])))
    assert found.startswith("methods[1]: unknown method 'site-4'; did you mean site-")
    (found,) = problems(write(methods=["site-1"]))
    assert found.startswith("methods[0]: unknown method 'site-1'")


def test_training_of_an_unknown_model_is_refused_with_the_nearest_one(write: Write) -> None:
    (found,) = problems(write(finetune__experts=TRAINING))
    assert found == "unknown key finetune.experts; did you mean expert?; known: generalist, expert"
    (found,) = problems(of_sources(write(finetune={"site-1": TRAINING, "site-9": TRAINING})))
    assert found.startswith("unknown key finetune.site-9; did you mean site-")
    manifest = load_manifest(of_sources(write(finetune={"site-2": TRAINING | {"init": "site-1"}})))
    assert list(manifest.finetune) == ["site-2"]


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ({"index": 3, "of": 3}, "site: index must be < of (3), got 3"),
        ({"index": 0, "of": 1}, "site.of must be >= 2, got 1"),
        ({"index": 0, "of": 3, "alpha": 0}, "site.alpha must be > 0, got 0"),
        ({"index": 0}, "site.of is required"),
    ],
    ids=str,
)
def test_a_site_that_cannot_be_is_named(write: Write, site: dict[str, Any], expected: str) -> None:
    npz = {"kind": "npz", "path": "x.npz", "split": "train", "class_names": ["a", "b"], "site": site}
    (found,) = problems(write(evaluation_sets=[{"name": "x", "source": npz}]))
    assert found == f"evaluation_sets[0].source[0].{expected}"


def test_evaluation_sets_must_have_distinct_names_that_can_be_folders(write: Write) -> None:
    item = MINIMAL["evaluation_sets"][0]
    assert problems(write(evaluation_sets=[item, item])) == [
        "evaluation_sets must have distinct names, got cells more than once"
    ]
    for name in ("a/b", "..", "", " x", "-x", "x\n"):
        (found,) = problems(write(evaluation_sets=[item | {"name": name}]))
        assert found.startswith("evaluation_sets[0].name: must be letters, digits")


def test_a_template_must_say_where_the_class_name_goes(write: Write) -> None:
    assert problems(write(prompts__templates=["a {}", "a photo"])) == [
        "prompts.templates: each template must contain {} for the class name, got 'a photo'"
    ]


def test_training_and_validation_must_name_the_same_sets(write: Write) -> None:
    item = MINIMAL["evaluation_sets"][0]
    training = {"init": "random", "train": [item], "validation": [item | {"name": "other"}]}
    (found,) = problems(write(finetune__expert=training))
    assert "train and validation must name the same sets in the same order" in found


def test_all_problems_come_at_once(write: Write) -> None:
    path = write(coefficient={"gamma": -1, "gama": 2}, part_rows=0, methods=["t4"])
    with pytest.raises(ProblemsError) as caught:
        load_manifest(path)
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n- b\n", "must be a mapping of settings, got list"),
        ("", "must be a mapping of settings, got NoneType"),
        ("name: [1, 2\noutput: x\n", "is not YAML"),
        ("name: !!python/object/apply:os.system ['true']\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content)
    (found,) = problems(path)
    assert found.startswith(said)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ManifestError, match=r"cannot be read .* give the path of a manifest"):
            load_manifest(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="cannot be read"):
        load_manifest(tmp_path / "binary.yaml")
