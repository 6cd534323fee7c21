"""Manifests as users write them: what is filled in, what is refused, and what the refusal says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.errors import ManifestError, PipelineError, ProblemsError
from pipeline.manifest import Manifest, load_manifest, manifest_schema

ROOT = Path(__file__).parents[2]
MANIFESTS = [*sorted((ROOT / "manifests").glob("*.yaml")), ROOT / "pipeline" / "demo" / "demo.yaml"]

MINIMAL: dict[str, Any] = {
    "name": "study",
    "output": "runs/study",
    "pair": {"architecture": "ViT-B-32-quickgelu", "generalist": "openai", "expert": "expert.safetensors"},
    "evaluation_sets": [{"name": "cells", "source": {"kind": "synthetic", "count": 8}}],
}
SOURCES: dict[str, Any] = {
    "architecture": "models/tiny.json",
    "models": {"site-1": "checkpoints/site-1.safetensors", "site-2": "openai", "site-3": "hf-hub:org/model"},
}
SYNTHETIC = MINIMAL["evaluation_sets"]
TRAINING = {"init": "random", "train": SYNTHETIC, "validation": SYNTHETIC}
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIPELINE_DATA_ROOT", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_manifest(**entries: Any) -> Path:
        """The minimal manifest with ``entries`` set; ``coefficient__gamma`` is a key of a section."""
        content = json.loads(json.dumps(MINIMAL))
        for path, value in entries.items():
            *sections, key = path.split("__")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = value
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return file

    return write_manifest


def problems(path: Path) -> list[str]:
    """Problems, each without the file's name that it must begin with."""
    with pytest.raises(PipelineError) as caught:
        load_manifest(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def of_sources(path: Path, **models: Any) -> Path:
    """The same manifest with K sources instead of its pair; ``models`` replace those of the section's keys."""
    content = yaml.safe_load(path.read_text())
    del content["pair"]
    content["sources"] = SOURCES | models
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def source(manifest: Manifest, position: int = 0) -> Any:
    return manifest.evaluation_sets[position].source[0]


def test_defaults_are_the_papers_and_the_designs(write: Write) -> None:
    manifest = load_manifest(write())
    rule, grouping, compute = manifest.coefficient, manifest.grouping, manifest.compute
    assert (rule.rule, rule.gamma, rule.delta) == ("t3", 1.0, 0.5)
    assert (rule.tau_generalist, rule.tau_expert, rule.lambda_min, rule.lambda_max) == (0.05, 0.05, 0.0, 1.0)
    assert (grouping.kind, grouping.batch_size, grouping.tolerance) == ("arrival", 32, None)
    assert (grouping.window.rows, grouping.window.bytes) == (65_536, 8 * 1024**3)
    assert (compute.threads, compute.tile, compute.workers, compute.device) == (1, 32, 1, "auto")
    assert (manifest.part_rows, manifest.pair.precision, manifest.prompts.text_tower) == (8192, "fp32", "merged")
    assert (rule.mapping, grouping.order, grouping.clusters) == ("sigmoid", "arrival", 3)
    assert (manifest.seeds.training, manifest.seeds.merging, manifest.seeds.order) == (0, 0, 0)
    assert manifest.selected_methods == ["generalist", "expert", "t3-batch"]
    assert (source(manifest).seed, source(manifest).site) == (0, "a")


def test_the_default_methods_follow_the_grouping(write: Write) -> None:
    assert load_manifest(write(grouping__kind="lambda")).selected_methods == ["generalist", "expert", "t3-lambda"]
    assert load_manifest(write(methods=["t3"], grouping__kind="lambda")).selected_methods == ["t3"]
    mixture = load_manifest(write(grouping__kind="mixture", grouping__clusters=5, coefficient__rule="dawin"))
    assert mixture.selected_methods == ["generalist", "expert", "dawin-mixture"]
    own = load_manifest(write(coefficient__rule="clinic.rules:margin"))
    assert own.selected_methods == ["generalist", "expert", "clinic.rules:margin-batch"]


def test_all_are_the_methods_that_the_models_allow(write: Write) -> None:
    every = load_manifest(write(methods="all")).selected_methods
    assert {"generalist", "t3", "dawin-mixture", "slerp", "ties", "mixup", "entropy-adaptive", "oracle"} <= {*every}
    assert len(every) == len({*every}) > 25
    sites = load_manifest(of_sources(write(methods="all"))).selected_methods
    assert sites == ["site-1", "site-2", "site-3", "ensemble", "mean", "entropy-adaptive"]
    models = SOURCES["models"] | {"generalist": "laion2b"}
    based = load_manifest(of_sources(write(methods="all"), models=models)).selected_methods
    assert {*based} == {*models, "ensemble", "mean", "entropy-adaptive", "task-arithmetic", "ties"}


def test_sources_are_named_in_order_and_the_pair_may_lie_among_them(write: Write, tmp_path: Path) -> None:
    manifest = load_manifest(of_sources(write()))
    assert manifest.checkpoints == {
        "site-1": str(tmp_path / "checkpoints/site-1.safetensors"),
        "site-2": "openai",
        "site-3": "hf-hub:org/model",
    }
    assert manifest.architecture == str(tmp_path / "models/tiny.json")
    assert (manifest.is_pair, manifest.checkpoint_key("site-2")) == (False, "sources.models.site-2")
    assert manifest.selected_methods == ["site-1", "site-2", "site-3", "entropy-adaptive"]
    both = load_manifest(of_sources(write(), models={"expert": "b.pt", "generalist": "a.pt", "third": "c.pt"}))
    assert both.is_pair
    assert both.selected_methods == ["expert", "generalist", "third", "t3-batch"]


def test_entries_of_methods_may_have_settings(write: Write) -> None:
    entries = ["soup", {"name": "soup", "alpha": 0.4}, {"name": "t3-batch", "order": "dirichlet(0.05)", "gamma": 2}]
    assert load_manifest(write(methods=entries)).selected_methods == entries
    own = [{"name": "clinic.rules:margin-lambda", "sharpness": 3, "tolerance": 0.1}]
    assert load_manifest(write(methods=own)).selected_methods == own


def test_a_source_may_be_one_or_several(write: Write) -> None:
    one = {"kind": "synthetic", "count": 8}
    several = load_manifest(write(evaluation_sets=[{"name": "cells", "source": [one, one | {"seed": 1}]}]))
    assert [item.seed for item in several.evaluation_sets[0].source] == [0, 1]
    assert len(load_manifest(write()).evaluation_sets[0].source) == 1


def test_paths_are_relative_to_the_manifest(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    npz = {"kind": "npz", "path": "data/x.npz", "split": "test", "class_names": ["a", "b"]}
    training = {
        "init": "../start.pt",
        "train": [{"name": "x", "source": npz}],
        "validation": [{"name": "x", "source": npz}],
    }
    manifest = load_manifest(
        write(
            data_root="data",
            pair__architecture="models/tiny.json",
            pair__generalist="checkpoints/generalist",
            evaluation_sets=[{"name": "x", "source": npz}],
            finetune__expert=training,
        )
    )
    assert manifest.output == str(tmp_path / "runs/study")
    assert manifest.archives == str(tmp_path.parent / "archives")
    assert manifest.data_root == str(tmp_path / "data")
    assert manifest.pair.architecture == str(tmp_path / "models/tiny.json")
    assert manifest.pair.generalist == str(tmp_path / "checkpoints/generalist")
    assert manifest.pair.expert == str(tmp_path / "expert.safetensors")
    assert source(manifest).path == str(tmp_path / "data/x.npz")
    expert = manifest.finetune["expert"]
    assert expert.init == str(tmp_path.parent / "start.pt")
    assert expert.train[0].source[0].path == str(tmp_path / "data/x.npz")


@pytest.mark.parametrize("reference", ["openai", "laion2b_s34b_b79k", "hf-hub:org/model"])
def test_tags_and_hub_ids_are_no_paths(write: Write, reference: str) -> None:
    assert load_manifest(write(pair__generalist=reference)).pair.generalist == reference


def test_absolute_paths_stay(write: Write, tmp_path: Path) -> None:
    assert load_manifest(write(output="/data/run")).output == "/data/run"


def test_environment_variables_are_replaced(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STUDY_RUNS", "/scratch/runs")
    monkeypatch.setenv("STUDY_EMPTY", "")
    monkeypatch.delenv("STUDY_UNSET", raising=False)
    manifest = load_manifest(
        write(
            output="${STUDY_RUNS}/a",
            archives="${STUDY_UNSET:-/scratch/archives}",
            prompts__templates=["${STUDY_EMPTY:-a photo} of {}"],
        )
    )
    assert manifest.output == "/scratch/runs/a"
    assert manifest.archives == "/scratch/archives"
    assert manifest.prompts.templates == ["a photo of {}"]


def test_every_unset_variable_is_named_with_its_key(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDY_UNSET", raising=False)
    found = problems(write(output="${STUDY_UNSET}/a", prompts__templates=["x {}", "${STUDY_UNSET} {}"]))
    assert found == [
        "output: environment variable STUDY_UNSET is not set; set it or write the value",
        "prompts.templates[1]: environment variable STUDY_UNSET is not set; set it or write the value",
    ]


def test_the_data_root_of_the_environment_is_relative_to_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PIPELINE_DATA_ROOT", "../data")
    npz = {"kind": "npz", "path": "${PIPELINE_DATA_ROOT}/x.npz", "split": "test", "class_names": ["a", "b"]}
    manifest = load_manifest(write(evaluation_sets=[{"name": "x", "source": npz}]))
    assert manifest.data_root == str(tmp_path / "data")
    assert source(manifest).path == str(tmp_path / "data/x.npz")


def test_the_command_line_beats_the_manifest_and_the_manifest_the_environment(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_DATA_ROOT", "/environment")
    path = write(data_root="/manifest")
    assert load_manifest(path).data_root == "/manifest"
    overruled = load_manifest(path, data_root=Path("given"), output=Path("elsewhere"))
    assert overruled.data_root == str(tmp_path / "given")
    assert overruled.output == str(tmp_path / "elsewhere")


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


@pytest.mark.parametrize("order", ["arrival", "iid", "temporal", "dirichlet(0.05)", "dirichlet(.5)"])
def test_orders_are_accepted(write: Write, order: str) -> None:
    assert load_manifest(write(grouping__order=order)).grouping.order == order


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


def test_the_schema_is_a_valid_json_schema_that_explains_every_default() -> None:
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$defs"]["Coefficient"]["properties"]["gamma"]["default"] == 1.0
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_schema_accepts_every_manifest_of_the_repository(path: Path) -> None:
    validator = jsonschema.Draft202012Validator(manifest_schema())
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(validator.iter_errors(content)) == []
    content["coefficient"] = {"gama": 1}
    assert len(list(validator.iter_errors(content))) == 1


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_of_the_repository_loads(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_DATA_ROOT", str(tmp_path))
    manifest = load_manifest(path)
    assert Manifest.model_validate(manifest.model_dump()) == manifest
    assert Path(manifest.output).is_absolute()
    assert Path(manifest.architecture).is_file()


def test_a_manifest_means_the_same_after_being_written_out(write: Write) -> None:
    manifest = load_manifest(write(coefficient__gamma=0.5, grouping__kind="lambda"))
    assert Manifest.model_validate(json.loads(manifest.model_dump_json())) == manifest
