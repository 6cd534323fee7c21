"""A pair, or sources, that do not fit: one line that says what to do, exit code 2, no traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.factory import MANIFEST, SYNTHETIC, Run, Study, only_line, replace_expert, with_nan_weights
from tests.models.factory import TINY, changed, random_state, write_config


def of_another_architecture(study: Study) -> None:
    deeper = write_config(study.folder, changed(TINY, vision_cfg__layers=3), "deeper.json")
    replace_expert(study, lambda _state: random_state(deeper, seed=2))


def with_missing_keys(study: Study) -> None:
    replace_expert(study, lambda state: {key: value for key, value in state.items() if not key.startswith("ln_final")})


def with_quickgelu(study: Study) -> None:
    replace_expert(study, lambda state: state, card={"architecture": changed(TINY, quick_gelu=True)})


def truncated(study: Study) -> None:
    path = study.folder / "expert.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def absent(study: Study) -> None:
    (study.folder / "expert.safetensors").unlink()


MISMATCHED_PAIRS = {
    of_another_architecture: ("does not fit architecture 'tiny.json'", "0 missing keys (none), 12 unexpected keys"),
    with_missing_keys: ("2 missing keys (ln_final.bias, ln_final.weight), 0 unexpected keys (none)",),
    with_nan_weights: ("1 tensors hold NaN or infinite values (visual.proj); the file is damaged",),
    with_quickgelu: ("was trained with QuickGELU, but architecture 'tiny.json' uses GELU",),
    truncated: ("is not a whole safetensors file",),
    absent: ("no such checkpoint",),
}


@pytest.mark.parametrize("command", [("validate",), ("precompute", "--engine", "local")], ids=lambda c: c[0])
@pytest.mark.parametrize("damage", MISMATCHED_PAIRS, ids=lambda damage: damage.__name__)
def test_a_mismatched_pair_is_one_line(
    study: Study, run: Run, damage: Callable[[Study], None], command: tuple[str, ...]
) -> None:
    damage(study)
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line.startswith("pair.expert: ")
    assert "expert.safetensors" in line
    for said in MISMATCHED_PAIRS[damage]:
        assert said in line


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:1000])])
def test_what_training_begins_with_is_checked_before_it(study: Study, run: Run, damage: Callable[[Path], Any]) -> None:
    source = SYNTHETIC | {"count": 4}
    expert = {
        "init": "generalist",
        "train": [{"name": "own", "source": source}],
        "validation": [{"name": "own", "source": source}],
    }
    study.write(finetune={"expert": expert})
    (study.folder / "expert.safetensors").unlink()
    assert run("validate", study.manifest)[0] == 0
    damage(study.folder / "generalist.safetensors")
    assert only_line(run("validate", study.manifest)).startswith("pair.generalist: ")


def of_sources(study: Study, *names: str, **entries: Any) -> Path:
    """The study with K sources instead of its pair: ``site-a`` and ``site-b`` are its two checkpoints."""
    files = {"site-a": "generalist", "site-b": "expert"}
    models = {name: f"./{files.get(name, name)}.safetensors" for name in names or files}
    content = changed(MANIFEST, sources={"architecture": "tiny.json", "models": models}, **entries)
    del content["pair"]
    study.manifest.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return study.manifest


COMMANDS = pytest.mark.parametrize("command", [("validate",), ("precompute", "--engine", "local")], ids=lambda c: c[0])


@COMMANDS
def test_sources_of_differing_architecture_are_one_line(study: Study, run: Run, command: tuple[str, ...]) -> None:
    of_another_architecture(study)
    of_sources(study)
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line.startswith("sources.models.site-b: ")
    assert "expert.safetensors: does not fit architecture 'tiny.json'" in line
    assert "0 missing keys (none), 12 unexpected keys" in line


@COMMANDS
@pytest.mark.parametrize("method", ["t3-batch", "soup", "slerp", "dawin", "oracle", "mixup"])
def test_a_method_that_needs_a_pair_is_refused_without_one(
    study: Study, run: Run, method: str, command: tuple[str, ...]
) -> None:
    of_sources(study, methods=["site-a", method])
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line == (f"study: method {method!r} needs a generalist and an expert; the models are site-a, site-b")


def test_methods_that_start_from_a_generalist_are_refused_without_one(study: Study, run: Run) -> None:
    of_sources(study, methods=["ties"])
    assert only_line(run("validate", study.manifest)) == (
        "study: method 'ties' needs a generalist and at least one expert; the models are site-a, site-b"
    )
    of_sources(study, "generalist", "site-b", methods=["soup"])
    assert only_line(run("validate", study.manifest)) == (
        "study: method 'soup' needs a generalist and an expert; the models are generalist, site-b"
    )
    of_sources(study, "generalist", "site-b", methods=["ties", "task-arithmetic", "mean", "entropy-adaptive"])
    code, out, err = run("validate", study.manifest)
    assert code == 0, err
    assert "sources: tiny.json, 28x28 pixels, 2 sources fit" in out


@COMMANDS
def test_the_generalists_text_tower_is_refused_without_a_generalist(
    study: Study, run: Run, command: tuple[str, ...]
) -> None:
    of_sources(study, prompts={"templates": ["a {}"], "text_tower": "generalist"})
    line = only_line(run(command[0], study.manifest, *command[1:]))
    assert line == "study: prompts.text_tower is generalist, but there is no such model; set it to merged"


def test_a_method_asked_for_by_name_must_suit_the_sources(study: Study, run: Run) -> None:
    of_sources(study)
    line = only_line(run("infer", study.manifest, "--engine", "local", "--method", "site-c"))
    assert line.startswith("--method: unknown method 'site-c'; did you mean site-")
    line = only_line(run("infer", study.manifest, "--engine", "local", "--method", "t3-batch"))
    assert line == "study: method 't3-batch' needs a generalist and an expert; the models are site-a, site-b"


def test_training_of_a_model_that_is_not_described_is_one_line(study: Study, run: Run) -> None:
    item = {"name": "cells", "source": SYNTHETIC}
    training = {"init": "random", "train": [item], "validation": [item]}
    of_sources(study, finetune={"site-a": training})
    line = only_line(run("finetune", study.manifest, "--role", "site-b"))
    assert line == "study: finetune.site-b is not set; did you mean site-a?; set there are: site-a"


def test_an_unknown_architecture_is_one_line(study: Study, run: Run) -> None:
    study.write(pair__architecture="ViT-B-33")
    for command in (("validate",), ("ingest", "--engine", "local"), ("precompute", "--engine", "local")):
        line = only_line(run(command[0], study.manifest, *command[1:]))
        assert "pair.architecture: 'ViT-B-33'" in line
        assert "did you mean" in line
        assert "ViT-B-32" in line


def test_a_pair_without_an_expert_is_one_line(study: Study, run: Run) -> None:
    study.write(pair__expert=None)
    assert "pair.expert is required for this command; name a checkpoint" in only_line(run("validate", study.manifest))


def test_nothing_to_finetune_is_one_line(study: Study, run: Run) -> None:
    assert "is not set; say there how a checkpoint is trained" in only_line(run("finetune", study.manifest))


def test_a_prompt_that_would_be_cut_is_one_line(study: Study, run: Run) -> None:
    study.write(prompts={"templates": ["a {}" + " very" * 30]})
    line = only_line(run("validate", study.manifest))
    assert "is longer than the model's 20 tokens" in line
