"""Image classifiers with a linear head through the whole job; the oracle is plain timm with the files on disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.special import log_softmax, softmax

from pipeline.archives.synthetic import SyntheticSource
from pipeline.manifest import Manifest, load_manifest
from pipeline.stages.selection import select_methods
from tests.main_job.classifiers import (
    CONFIGS,
    DECOUPLED,
    IMAGES,
    METHODS,
    ROLES,
    PlainTimm,
    Weights,
    trained_and_run,
    write_study,
)
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    MANIFEST,
    assert_same_files,
    chosen,
    matrix,
    modification_times,
    numpy_weights,
    read_answers,
    read_evidence,
    read_parts,
    run_both,
    run_infer,
    run_precompute,
)

HEADS = {"resnet": "fc.", "vit": "head."}


def interpolated(pair: list[Weights], lam: float) -> Weights:
    """(1-λ)·θ_pt + λ·θ_ft, but counters, which are the generalist's."""
    return {
        key: own if key.endswith("num_batches_tracked") else (1 - lam) * own + lam * pair[1][key]
        for key, own in pair[0].items()
    }


@pytest.fixture(scope="module", params=list(CONFIGS))
def backbone(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A trained pair and a run of both stages. Not to be written to."""
    return trained_and_run(write_study(tmp_path_factory.mktemp(backbone), CONFIGS[backbone]))


@pytest.fixture(scope="module")
def pair(run: Manifest) -> list[Weights]:
    return [numpy_weights(Path(str(run.checkpoints[role]))) for role in ROLES]


@pytest.fixture(scope="module")
def plain(backbone: str) -> PlainTimm:
    source = SyntheticSource(IMAGES, seed=11)
    return PlainTimm(backbone, {item.index: item.image for item in source.read(0, IMAGES) if item.image is not None})


def read_plan(manifest: Manifest, method: str) -> list[dict[str, Any]]:
    item = chosen(manifest, method)
    assert item.rule is not None
    assert item.grouping is not None
    root = Path(manifest.output) / "coefficients" / item.rule.folder / "cells" / "batches"
    batches: list[dict[str, Any]] = read_parts(root / item.grouping.folder).to_pylist()
    return batches


def answers(manifest: Manifest, method: str) -> NDArray[np.float64]:
    """Probabilities [N, C] by row, which are 0..N-1 as nothing is rejected."""
    found = read_answers(manifest, chosen(manifest, method).key)
    assert found["row"].to_pylist() == list(range(IMAGES))
    return matrix(found, "probabilities")


def test_the_models_differ_from_one_another_and_from_a_constant(run: Manifest) -> None:
    """Else the comparisons below would say nothing."""
    first, second = (answers(run, role) for role in ROLES)
    assert np.abs(first - second).max() > 0.05
    assert min(np.ptp(found, axis=0).max() for found in (first, second)) > 0.05


def test_evidence_is_what_plain_timm_says_with_the_files_on_disk(
    run: Manifest, pair: list[Weights], plain: PlainTimm
) -> None:
    evidence = read_evidence(run)
    for role, weights in zip(ROLES, pair, strict=True):
        expected = plain.logits(weights, list(range(IMAGES)))
        np.testing.assert_allclose(matrix(evidence, f"logits_{role}"), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answers(run, role), softmax(expected, axis=1), rtol=0, atol=1e-5)


def test_a_batch_is_answered_by_timm_with_interpolated_weights(
    run: Manifest, pair: list[Weights], plain: PlainTimm
) -> None:
    found, batches = answers(run, "t3-batch"), read_plan(run, "t3-batch")
    assert len({batch["lambda"] for batch in batches}) > 2
    for batch in batches:
        expected = softmax(plain.logits(interpolated(pair, batch["lambda"]), batch["rows"]), axis=1)
        np.testing.assert_allclose(found[batch["rows"]], expected, rtol=0, atol=1e-5)


def test_a_sample_is_answered_by_timm_at_its_own_lambda(run: Manifest, pair: list[Weights], plain: PlainTimm) -> None:
    evidence = read_evidence(run)
    log_p = [log_softmax(matrix(evidence, f"logits_{role}"), axis=1) for role in ROLES]
    certainty = np.exp(np.stack([(np.exp(own) * own).sum(axis=1) for own in log_p], axis=1))
    lambdas = certainty[:, 1] / certainty.sum(axis=1)
    stored = read_answers(run, chosen(run, "dawin").key)["lambda"].to_numpy()
    np.testing.assert_allclose(stored, lambdas, rtol=0, atol=1e-6)
    found = answers(run, "dawin")
    for row in range(0, IMAGES, 7):
        expected = softmax(plain.logits(interpolated(pair, lambdas[row]), [row]), axis=1)
        np.testing.assert_allclose(found[[row]], expected, rtol=0, atol=1e-5)


def test_backbone_and_head_are_merged_with_weights_of_their_own(
    run: Manifest, backbone: str, pair: list[Weights], plain: PlainTimm
) -> None:
    found, batches = answers(run, "entropy-adaptive"), read_plan(run, "entropy-adaptive")
    for batch in batches:
        (_, encoder), (_, head) = batch["weights_encoder"], batch["weights_head"]
        assert batch["lambda"] == encoder
        body, last = interpolated(pair, encoder), interpolated(pair, head)
        layer = [key for key in body if key.startswith(HEADS[backbone])]
        assert len(layer) == 2
        expected = softmax(plain.logits(body | {key: last[key] for key in layer}, batch["rows"]), axis=1)
        np.testing.assert_allclose(found[batch["rows"]], expected, rtol=0, atol=1e-5)
    assert max(abs(batch["weights_encoder"][1] - batch["weights_head"][1]) for batch in batches) > 0.01


def test_the_soup_is_timm_with_the_weights_of_both(run: Manifest, pair: list[Weights], plain: PlainTimm) -> None:
    expected = softmax(plain.logits(interpolated(pair, 0.4), list(range(IMAGES))), axis=1)
    np.testing.assert_allclose(answers(run, "soup"), expected, rtol=0, atol=1e-5)


def test_a_merged_checkpoint_loads_in_plain_timm(
    run: Manifest, pair: list[Weights], plain: PlainTimm, tmp_path: Path, command_line: CommandLine
) -> None:
    manifest, out = Path(run.output).parent / MANIFEST, tmp_path / "soup.safetensors"
    code, printed, err = command_line(
        "merge", str(manifest), "--method", "soup", "--set", "alpha=0.4", "--out", str(out), "--json"
    )
    assert code == 0, err
    assert json.loads(printed)["card"]["merge"]["lambda"] == 0.4
    merged = load_file(out)
    assert {key: value.dtype for key, value in merged.items()} == {
        key: value.dtype for key, value in plain.model.state_dict().items()
    }
    for key, expected in interpolated(pair, 0.4).items():
        np.testing.assert_allclose(merged[key].double().numpy(), expected, rtol=1e-6, atol=1e-6)
    logits = plain.logits(numpy_weights(out), list(range(IMAGES)))
    np.testing.assert_allclose(softmax(logits, axis=1), answers(run, "soup"), rtol=0, atol=1e-5)


def test_the_ledger_counts_no_text(run: Manifest) -> None:
    ledger = json.loads((Path(run.output) / "run.json").read_text())["ledger"]
    totals = [ledger["precompute"], *ledger["infer"].values()]
    assert [sum(total["counts"]["text_forward_calls"].values()) for total in totals] == [0] * (1 + len(METHODS))
    tiles = 2 + 2 + 1
    assert ledger["precompute"]["counts"]["image_forward_calls"] == {"generalist": tiles, "expert": tiles, "merged": 0}
    for item in select_methods(run):
        calls = ledger["infer"][item.key]["counts"]["image_forward_calls"]
        forwards = {"source": 0, "ensemble": 0, "batch": tiles, "static": tiles}[item.method.combination]
        spent = {"merged": 0, "per-sample": 2 * tiles} if item.method.name == "dawin" else {"merged": forwards}
        assert calls == {"generalist": 0, "expert": 0, **spent}


def test_online_leaves_the_predictions_of_the_cached_way(run: Manifest, backbone: str, tmp_path: Path) -> None:
    folder = Path(run.output).parent
    checkpoints = {role: str(folder / f"{role}.safetensors") for role in ROLES}
    path = write_study(
        tmp_path,
        CONFIGS[backbone],
        archives=run.archives,
        pair={"architecture": "tiny.json", **checkpoints},
        methods=["t3-batch", DECOUPLED],
    )
    online = load_manifest(path)
    run_infer(online, online=True)
    for item in select_methods(online):
        files = [
            {
                part.name: part.read_bytes()
                for part in (Path(manifest.output) / "predictions" / item.key).rglob("part-*")
            }
            for manifest in (online, run)
        ]
        assert files[0] == files[1]
        assert len(files[0]) == 3


@pytest.mark.parametrize("command", ["validate", "precompute"])
def test_a_set_of_another_class_count_is_one_line(run: Manifest, command: str, command_line: CommandLine) -> None:
    path = Path(run.output).parent / "three.yaml"
    content = yaml.safe_load((path.parent / MANIFEST).read_text())
    item = {"name": "three", "source": {"kind": "synthetic", "count": 4, "classes": 3}}
    path.write_text(yaml.safe_dump(content | {"evaluation_sets": [item], "output": "three"}))
    engine = () if command == "validate" else ("--engine", "local")
    if command == "precompute":
        assert command_line("ingest", str(path), "--engine", "local")[0] == 0
    code, _, err = command_line(command, str(path), *engine)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert "evaluation set 'three': has 3 classes, but the models' heads have 4" in err


def test_a_set_that_orders_its_classes_otherwise_is_one_line(run: Manifest, command_line: CommandLine) -> None:
    """A linear head knows its classes by position: names in another order would be other classes."""
    path = Path(run.output).parent / "reordered.yaml"
    content = yaml.safe_load((path.parent / MANIFEST).read_text())
    names = list(SyntheticSource(1, 0).class_names)
    content["evaluation_sets"][0]["class_names"] = names[::-1]
    path.write_text(yaml.safe_dump(content | {"output": "reordered"}))
    code, _, err = command_line("precompute", str(path), "--engine", "local")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert f"its classes are {', '.join(names[::-1])}, but the models' heads were trained on {', '.join(names)}" in err


def test_checkpoints_and_sets_of_another_class_count_are_a_line_each(
    run: Manifest, backbone: str, tmp_path: Path, command_line: CommandLine
) -> None:
    folder = Path(run.output).parent
    path = write_study(
        tmp_path,
        CONFIGS[backbone] | {"num_classes": 7},
        pair={"architecture": "tiny.json", **{role: str(folder / f"{role}.safetensors") for role in ROLES}},
    )
    code, _, err = command_line("validate", str(path))
    assert code == 2
    lines = err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["pair.generalist", "pair.expert", "evaluation set 'cells'"]


def text_settings(run: Manifest, folder: Path, backbone: str, **entries: Any) -> Path:
    """A study of the run's models and archives with prompts of its own and the generalist's text tower."""
    checkpoints = {role: str(Path(run.output).parent / f"{role}.safetensors") for role in ROLES}
    settings = {"archives": run.archives, "pair": {"architecture": "tiny.json", **checkpoints}} | entries
    prompts = {"text_tower": "generalist", "templates": ["a smear with a {}"]}
    return write_study(folder, CONFIGS[backbone], prompts=prompts, **settings)


def test_a_policy_of_the_text_tower_changes_no_weight_and_no_answer_of_classifiers(
    run: Manifest, backbone: str, tmp_path: Path
) -> None:
    manifest = load_manifest(text_settings(run, tmp_path, backbone))
    shutil.copytree(Path(run.output) / "evidence", Path(manifest.output) / "evidence")
    summary = run_precompute(manifest)
    assert (summary.computed, summary.skipped) == (0, 3)
    run_infer(manifest)
    for table in ("merged", "predictions"):
        ours, theirs = (
            {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            for root in (Path(found.output) / table for found in (manifest, run))
        )
        assert_same_files(ours, theirs)
    assert {name.split("/")[0] for name in ours} >= {item.key for item in select_methods(run)}


def test_an_edit_of_prompts_leaves_a_whole_run_of_classifiers_valid(
    run: Manifest, backbone: str, tmp_path: Path
) -> None:
    manifest = load_manifest(text_settings(run, tmp_path, backbone))
    shutil.copytree(run.output, manifest.output)
    weights = sorted(Path(manifest.output).rglob("weights.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights], modification_times(Path(manifest.output))
    assert (run_precompute(manifest).computed, run_infer(manifest).computed) == (0, 0)
    assert ([path.stat().st_mtime_ns for path in weights], modification_times(Path(manifest.output))) == before
    assert len(weights) == 2


def test_classifiers_without_a_generalist_need_none_for_a_text_tower_that_they_lack(
    run: Manifest, backbone: str, pair: list[Weights], plain: PlainTimm, tmp_path: Path, command_line: CommandLine
) -> None:
    folder = Path(run.output).parent
    models = {f"site-{role}": str(folder / f"{role}.safetensors") for role in ROLES}
    path = text_settings(run, tmp_path, backbone, pair=None, methods=["mean"])
    content = yaml.safe_load(path.read_text())
    del content["finetune"]
    path.write_text(yaml.safe_dump(content | {"sources": {"architecture": "tiny.json", "models": models}}))
    code, _, err = command_line("validate", str(path))
    assert code == 0, err
    found = answers(run_both(load_manifest(path)), "mean")
    expected = softmax(plain.logits(interpolated(pair, 0.5), list(range(IMAGES))), axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
