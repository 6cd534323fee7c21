"""Every method's answers in a run of all: those of an independent computation in plain numpy and plain open_clip."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from scipy.special import log_softmax, softmax

from pipeline.manifest import Manifest
from pipeline.stages.selection import Selected
from tests.main_job.all_methods import GRID, IMAGES, STATIC, Everything, read_plan
from tests.main_job.factory import (
    WINDOW_ROWS,
    PlainClip,
    chosen,
    copy_run,
    matrix,
    numpy_weights,
    read_answers,
    read_evidence,
    read_parts,
    run_infer,
    run_precompute,
    single_precision,
    study,
)
from tests.main_job.plain_merges import on_the_line, plain_merge

RULES = ("t3", "entropy-ratio", "dawin", "confidence-ratio", "x-entropy-ratio")
NEAR_TIE = 1e-4


def accuracy(predictions: pa.Table) -> float:
    return float(np.mean(predictions["prediction"].to_numpy() == predictions["label"].to_numpy()))


def _label(entry: Mapping[str, Any]) -> str:
    return "-".join(str(value) for value in entry.values())


@pytest.mark.parametrize("entry", STATIC, ids=_label)
def test_a_static_method_equals_a_merge_in_numpy_and_a_forward_in_open_clip(
    everything: Everything, pair: Path, plain: PlainClip, entry: dict[str, Any]
) -> None:
    settings = {name: value for name, value in entry.items() if name != "name"}
    key = chosen(everything.manifest, entry["name"], **settings).key
    predictions = read_answers(everything.manifest, key)
    lam = predictions["lambda"][0].as_py()
    ends = (numpy_weights(pair / f"{end}.safetensors") for end in ("generalist", "expert"))
    expected = plain_merge(entry, *ends, lam)
    stored = numpy_weights(everything.run / "merged" / key / "weights.safetensors")
    assert sorted(stored) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(stored[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    p_NC = plain.probabilities(single_precision(expected), predictions["row"].to_pylist())
    np.testing.assert_allclose(matrix(predictions, "probabilities"), p_NC, rtol=0, atol=1e-5)


def test_a_static_merge_states_its_lambda_where_it_has_one(everything: Everything) -> None:
    stated = {
        "soup": 0.5,
        "task-arithmetic": 0.3,
        "mean": None,
        "slerp": None,
        "ties": None,
        "ensemble": None,
    }
    for name, lam in stated.items():
        found = set(read_answers(everything.manifest, name)["lambda"].to_pylist())
        assert found == {None if lam is None else float(np.float32(lam))}


def test_task_arithmetic_at_scale_one_answers_as_the_expert(everything: Everything) -> None:
    key = chosen(everything.manifest, "task-arithmetic", scale=1.0).key
    ours, expert = (matrix(read_answers(everything.manifest, name), "probabilities") for name in (key, "expert"))
    np.testing.assert_allclose(ours, expert, rtol=0, atol=1e-6)


def mixup_lambda(manifest: Manifest) -> float:
    """λ in the predictions; the file of weights must record the same."""
    key = chosen(manifest, "mixup").key
    (lam,) = set(read_answers(manifest, key)["lambda"].to_pylist())
    with safe_open(Path(manifest.output) / "merged" / key / "weights.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["pipeline.merge"])["lambda"] == pytest.approx(lam, abs=1e-7)
    assert 0.0 <= lam <= 1.0
    return float(lam)


def test_mixup_draws_one_lambda_per_seed_and_records_it(
    everything: Everything, finished: Manifest, pair: Path, tmp_path: Path
) -> None:
    same = copy_run(finished, tmp_path / "same", pair, methods=["mixup"])
    other = copy_run(finished, tmp_path / "other", pair, methods=["mixup"], seeds={"merging": 7})
    for manifest in (same, other):
        run_infer(manifest)
    assert mixup_lambda(same) == mixup_lambda(everything.manifest)
    assert mixup_lambda(other) != mixup_lambda(same)
    assert chosen(same, "mixup").key == "mixup"
    key = chosen(other, "mixup").key
    assert key.startswith("mixup@")
    spelled = json.loads((Path(other.output) / "predictions" / f"{key}.json").read_text())
    assert spelled["settings"] == {"distribution": "beta", "alpha": 0.5, "seed": 7}
    assert json.loads((Path(same.output) / "run.json").read_text())["seeds"]["merging"] == 0


def test_with_the_generalists_text_tower_only_the_image_tower_is_merged(
    pair: Path, archives: Path, tmp_path: Path, plain: PlainClip
) -> None:
    manifest = study(tmp_path, pair, archives, methods=["soup", "ties", "slerp"], prompts={"text_tower": "generalist"})
    run_precompute(manifest)
    run_infer(manifest)
    generalist, expert = (numpy_weights(pair / f"{end}.safetensors") for end in ("generalist", "expert"))
    image_tower = [key for key in generalist if key.startswith("visual.")]
    for name in ("soup", "ties", "slerp"):
        towers = ({key: state[key] for key in image_tower} for state in (generalist, expert))
        expected = {**generalist, **plain_merge({"name": name}, *towers, lam=0.0)}
        stored = numpy_weights(Path(manifest.output) / "merged" / name / "weights.safetensors")
        for key, value in expected.items():
            if key in image_tower:
                np.testing.assert_allclose(stored[key], value, rtol=1e-6, atol=1e-6, err_msg=key)
            else:
                np.testing.assert_array_equal(stored[key], value, err_msg=key)
        predictions = read_answers(manifest, name)
        p_NC = plain.probabilities(single_precision(expected), predictions["row"].to_pylist())
        np.testing.assert_allclose(matrix(predictions, "probabilities"), p_NC, rtol=0, atol=1e-5)


def test_the_ensemble_is_the_mean_of_logits_or_of_probabilities_in_evidence(everything: Everything) -> None:
    evidence = read_evidence(everything.manifest)
    logits = [matrix(evidence, f"logits_{end}") for end in ("generalist", "expert")]
    probabilities = chosen(everything.manifest, "ensemble", mean_of="probabilities").key
    for key, expected in (
        ("ensemble", softmax(np.mean(logits, axis=0), axis=1)),
        (probabilities, np.mean(softmax(logits, axis=2), axis=0)),
    ):
        ours = matrix(read_answers(everything.manifest, key), "probabilities")
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def entropies(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return -(softmax(logits, axis=1) * log_softmax(logits, axis=1)).sum(axis=1)


def entropy_ratio(generalist: NDArray[np.float64], expert: NDArray[np.float64], _: NDArray[np.int64]) -> Any:
    return entropies(expert) / (entropies(generalist) + entropies(expert))


def dawin(generalist: NDArray[np.float64], expert: NDArray[np.float64], _: NDArray[np.int64]) -> Any:
    weights = np.exp(-np.stack([entropies(generalist), entropies(expert)]))
    return weights[1] / weights.sum(axis=0)


def confidence_ratio(generalist: NDArray[np.float64], expert: NDArray[np.float64], _: NDArray[np.int64]) -> Any:
    confidence = np.stack([softmax(logits, axis=1).max(axis=1) for logits in (generalist, expert)])
    return confidence[1] / confidence.sum(axis=0)


def x_entropy_ratio(generalist: NDArray[np.float64], expert: NDArray[np.float64], labels: NDArray[np.int64]) -> Any:
    rows = np.arange(len(labels))
    losses = np.stack([-log_softmax(logits, axis=1)[rows, labels] for logits in (generalist, expert)])
    return losses[1] / losses.sum(axis=0)


@pytest.mark.parametrize(
    ("rule", "formula"),
    [
        ("entropy-ratio", entropy_ratio),
        ("dawin", dawin),
        ("confidence-ratio", confidence_ratio),
        ("x-entropy-ratio", x_entropy_ratio),
    ],
)
def test_the_cached_coefficients_of_a_rule_are_its_formula_over_the_evidence(
    everything: Everything, rule: str, formula: Callable[..., NDArray[np.float64]]
) -> None:
    evidence = read_evidence(everything.manifest)
    samples = read_parts(everything.run / "coefficients" / rule / "cells" / "samples")
    assert samples["row"].to_pylist() == evidence["row"].to_pylist()
    logits = (matrix(evidence, f"logits_{end}") for end in ("generalist", "expert"))
    expected = formula(*logits, evidence["label"].to_numpy())
    np.testing.assert_allclose(samples["lambda"].to_numpy(), expected, rtol=1e-6, atol=1e-6)
    assert len(set(samples["lambda"].to_pylist())) > IMAGES // 2
    assert samples["lambda"].equals(samples["lambda_raw"])
    assert set(samples["branch"].to_pylist()) == {"none"}


def coefficients(everything: Everything, rule: str) -> dict[int, float]:
    samples = read_parts(everything.run / "coefficients" / rule / "cells" / "samples")
    return dict(zip(samples["row"].to_pylist(), samples["lambda"].to_pylist(), strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_every_grouping_of_a_rule_holds_each_row_once_at_the_mean_lambda(everything: Everything, rule: str) -> None:
    lam_of = coefficients(everything, rule)
    grouped = [item for item in everything.of("batch") if item.method.rule == rule]
    assert {item.method.grouping for item in grouped} == {"sample", "arrival", "lambda", "mixture"}
    for item in grouped:
        plan = read_plan(everything.manifest, item)
        batches = plan["rows"].to_pylist()
        assert sorted(row for rows in batches for row in rows) == sorted(lam_of), item.key
        assert [len(rows) for rows in batches] == plan["size"].to_pylist()
        assert len(set(plan["batch"].to_pylist())) == len(plan)
        means = [np.mean([lam_of[row] for row in rows]) for rows in batches]
        np.testing.assert_allclose(plan["lambda"].to_numpy(), means, rtol=0, atol=1e-7)
        assert all(len({row // WINDOW_ROWS for row in rows}) == 1 for rows in batches)
        applied = dict(zip(*(read_answers(everything.manifest, item.key)[c].to_pylist() for c in ("row", "lambda"))))  # noqa: B905
        for rows, lam in zip(batches, plan["lambda"].to_pylist(), strict=True):
            assert {applied[row] for row in rows} == {lam}
        check_grouping(item, batches, lam_of)


def check_grouping(item: Selected, batches: list[list[int]], lam_of: dict[int, float]) -> None:
    if item.method.grouping == "sample":
        assert all(len(rows) == 1 for rows in batches)
    elif item.method.grouping == "arrival" and item.settings["order"] == "arrival":
        assert [row for rows in batches for row in rows] == sorted(lam_of)
        assert all(len({row // 32 for row in rows}) == 1 for rows in batches)
    elif item.method.grouping == "lambda":
        for window in {rows[0] // WINDOW_ROWS for rows in batches}:
            inside = [row for rows in batches if rows[0] // WINDOW_ROWS == window for row in rows]
            assert inside == sorted(inside, key=lambda row: (lam_of[row], row))
        assert max(len(rows) for rows in batches) == 32
    elif item.method.grouping == "mixture":
        per_window = [rows[0] // WINDOW_ROWS for rows in batches]
        assert 1 < max(per_window.count(window) for window in per_window) <= item.settings["clusters"]  # type: ignore[operator]


@pytest.mark.parametrize(
    "method", ["dawin-batch", "entropy-ratio-lambda", "confidence-ratio-mixture", "x-entropy-ratio-batch", "dawin"]
)
def test_predictions_equal_a_plain_merge_loop_over_the_batches(
    everything: Everything, pair: Path, plain: PlainClip, method: str
) -> None:
    item = chosen(everything.manifest, method)
    generalist, expert = (numpy_weights(pair / f"{end}.safetensors") for end in ("generalist", "expert"))
    lam_of, predictions = coefficients(everything, str(item.method.rule)), read_answers(everything.manifest, item.key)
    ours = dict(zip(predictions["row"].to_pylist(), matrix(predictions, "probabilities"), strict=True))
    batches = read_plan(everything.manifest, item)["rows"].to_pylist()
    for rows in batches[:: max(1, len(batches) // 5)]:
        state = single_precision(on_the_line(generalist, expert, float(np.mean([lam_of[row] for row in rows]))))
        # Class embeddings are interpolated along λ: the curve's own tolerance, not the merge's, bounds the difference.
        expected = plain.probabilities(state, rows)
        np.testing.assert_allclose([ours[row] for row in rows], expected, rtol=0, atol=1e-4)


def test_the_oracle_is_right_at_least_as_often_as_every_constant_lambda(everything: Everything) -> None:
    best = accuracy(read_answers(everything.manifest, "oracle"))
    keys = [chosen(everything.manifest, "soup", alpha=alpha).key for alpha in GRID]
    assert len(set(keys)) == len(GRID)
    close = {key: near_ties(read_answers(everything.manifest, key)) / IMAGES for key in keys}
    for key in keys:
        assert best >= accuracy(read_answers(everything.manifest, key)) - close[key], key
    for key in ("generalist", "expert"):
        assert best >= accuracy(read_answers(everything.manifest, key))


def near_ties(predictions: pa.Table) -> int:
    """Rows whose answer the last bits of the logits decide: the soup's head is exact, the oracle's interpolated."""
    top = np.sort(matrix(predictions, "probabilities"), axis=1)[:, -2:]
    return int((top[:, 1] - top[:, 0] < NEAR_TIE).sum())


def test_the_oracles_lambda_is_the_first_of_the_best_constant_ones(everything: Everything) -> None:
    (lam,) = set(read_answers(everything.manifest, "oracle")["lambda"].to_pylist())
    keys = ["generalist", *(chosen(everything.manifest, "soup", alpha=alpha).key for alpha in GRID), "expert"]
    tables = [read_answers(everything.manifest, key) for key in keys]
    correct = np.array([round(accuracy(table) * IMAGES) for table in tables])
    uncertain = np.array([near_ties(table) for table in tables])
    position = round(lam * 10)
    assert lam == pytest.approx(position / 10, abs=1e-6)
    assert correct[position] + uncertain[position] >= correct.max()
    if not uncertain.any():
        assert position == correct.argmax()


def test_the_oracles_lambda_is_the_best_of_its_own_grid(everything: Everything) -> None:
    grid, evidence = read_parts(everything.run / "grid" / "oracle" / "cells"), read_evidence(everything.manifest)
    assert grid["row"].equals(evidence["row"])
    inner = [matrix(grid, f"logits_{position}") for position in range(1, len(GRID) + 1)]
    logits = [matrix(evidence, "logits_generalist"), *inner, matrix(evidence, "logits_expert")]
    correct = (np.stack(logits).argmax(axis=2) == evidence["label"].to_numpy()).sum(axis=1)
    oracle = read_answers(everything.manifest, "oracle")
    assert set(oracle["lambda"].to_pylist()) == {float(np.float32(correct.argmax() / 10))}
    assert round(accuracy(oracle) * IMAGES) == correct.max()


def test_the_oracle_answers_as_the_soup_at_its_lambda(everything: Everything) -> None:
    oracle = read_answers(everything.manifest, "oracle")
    soup = chosen(everything.manifest, "soup", alpha=round(oracle["lambda"][0].as_py(), 1)).key
    ours, expected = (matrix(table, "probabilities") for table in (oracle, read_answers(everything.manifest, soup)))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
