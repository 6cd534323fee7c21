"""All methods in one run: each equals an independent computation in plain numpy and plain open_clip, at its cost."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from scipy.special import log_softmax, softmax

from pipeline.drivers.infer import infer
from pipeline.drivers.precompute import precompute
from pipeline.drivers.summary import Summary
from pipeline.engines.engine import Job
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest
from pipeline.methods import METHODS
from pipeline.models.checkpoints import write_checkpoint
from pipeline.stages.selection import Selected, select_methods
from pipeline.stages.work import Report
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    MANIFEST,
    WINDOW_ROWS,
    PlainClip,
    ShuffledEngine,
    assert_same_files,
    chosen,
    copy_run,
    matrix,
    modification_times,
    numpy_weights,
    read_answers,
    read_evidence,
    read_parts,
    result_files,
    run_infer,
    run_precompute,
    single_precision,
    study,
)

Weights = Mapping[str, NDArray[np.float64]]

IMAGES, TILES, PARTS = 490, 16, 5
GRID = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
STATIC: list[dict[str, Any]] = [
    {"name": "soup"},
    {"name": "soup", "alpha": 0.4},
    {"name": "mean"},
    {"name": "task-arithmetic"},
    {"name": "task-arithmetic", "scale": 1.0},
    {"name": "slerp"},
    {"name": "slerp", "alpha": 0.2},
    {"name": "ties"},
    {"name": "ties", "density": 0.5, "scale": 0.7},
    {"name": "mixup"},
    {"name": "mixup", "distribution": "uniform"},
]
OTHERS: list[dict[str, Any]] = [
    {"name": "ensemble", "mean_of": "probabilities"},
    {"name": "t3-batch", "order": "dirichlet(0.05)"},
    {"name": "dawin-mixture", "clusters": 5},
]
ENTRIES = [*METHODS, *STATIC, *[{"name": "soup", "alpha": alpha} for alpha in GRID], *OTHERS]
RULES = ("t3", "entropy-ratio", "dawin", "confidence-ratio", "x-entropy-ratio")
TABLES = ("predictions", "coefficients", "grid", "merged")
NEAR_TIE = 1e-4


@dataclass(frozen=True)
class Everything:
    """A run of all methods, and of some again at other settings; what each command of it did."""

    manifest: Manifest
    selected: list[Selected]
    precomputed: Summary
    inferred: list[Summary]

    @property
    def run(self) -> Path:
        return Path(self.manifest.output)

    def spent(self, key: str) -> dict[str, Any]:
        """Counts of a method over the whole run."""
        record = json.loads((self.run / "run.json").read_text())
        counts: dict[str, Any] = record["ledger"]["infer"][key]["counts"]
        return counts

    def of(self, *combinations: str) -> list[Selected]:
        found = [item for item in self.selected if item.method.combination in combinations]
        assert found
        return found


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, pair: Path, archives: Path) -> Everything:
    """Not to be written to."""
    folder = tmp_path_factory.mktemp("everything")
    manifest = study(folder, pair, archives, methods="all")
    precomputed = run_precompute(manifest)
    first = run_infer(manifest)
    manifest = study(folder, pair, archives, methods=ENTRIES)
    return Everything(manifest, select_methods(manifest), precomputed, [first, run_infer(manifest)])


@pytest.fixture(scope="module")
def plain() -> PlainClip:
    return PlainClip()


def accuracy(predictions: pa.Table) -> float:
    return float(np.mean(predictions["prediction"].to_numpy() == predictions["label"].to_numpy()))


# What a run of all methods holds, and what it cost.


def test_one_command_answers_every_row_of_evidence_by_every_method(everything: Everything) -> None:
    rows = read_evidence(everything.manifest)["row"].to_pylist()
    assert len(rows) == IMAGES
    assert {item.method.name for item in everything.selected} == set(METHODS)
    assert everything.inferred[0].computed == len(METHODS) * PARTS
    assert everything.inferred[1].computed == (len(everything.selected) - len(METHODS)) * PARTS
    for item in everything.selected:
        predictions = read_answers(everything.manifest, item.key)
        assert predictions["row"].to_pylist() == rows, item.key
        p_NC = matrix(predictions, "probabilities")
        np.testing.assert_allclose(p_NC.sum(axis=1), 1.0, atol=1e-5, err_msg=item.key)
        assert predictions["prediction"].to_pylist() == p_NC.argmax(axis=1).tolist(), item.key
        named = {"generalist": 0.0, "expert": 1.0}
        if item.method.name in named:
            assert set(predictions["lambda"].to_pylist()) == {named[item.method.name]}


def test_all_methods_share_one_pass_of_the_plain_models(everything: Everything) -> None:
    calls = everything.precomputed.ledger.per_model["image_forward_calls"]
    assert (calls["generalist"], calls["expert"], calls["merged"]) == (TILES, TILES, 0)
    for summary in everything.inferred:
        for counts in summary.ledger.per_model.values():
            assert sum(count for model, count in counts.items() if model not in {"merged", "per-sample"}) == 0
    for item in everything.selected:
        spent = everything.spent(item.key)
        for kind in ("image_forward_calls", "image_forward_images", "text_forward_calls"):
            assert spent[kind]["generalist"] == spent[kind]["expert"] == 0, item.key


def test_plain_models_and_ensembles_cost_nothing(everything: Everything) -> None:
    for item in everything.of("source", "ensemble"):
        spent = everything.spent(item.key)
        assert {name: spent[name] for name in ("merges", "images_read", "batches")} == {
            "merges": 0,
            "images_read": 0,
            "batches": 0,
        }
        assert sum(spent["image_forward_calls"].values()) == sum(spent["text_forward_calls"].values()) == 0


def test_a_static_method_costs_one_merge_and_one_forward_per_tile(everything: Everything) -> None:
    for item in everything.of("static"):
        spent = everything.spent(item.key)
        assert (spent["merges"], spent["merges_skipped"], spent["images_read"]) == (1, 0, IMAGES), item.key
        assert spent["image_forward_calls"]["merged"] == TILES
        assert spent["image_forward_images"]["merged"] == IMAGES
        assert spent["text_forward_calls"]["merged"] == 1


def test_a_batch_costs_a_merge_unless_it_is_skipped_and_its_tiles_forwards(everything: Everything) -> None:
    for item in everything.of("batch"):
        spent, batches = everything.spent(item.key), read_plan(everything.manifest, item)
        assert spent["batches"] == len(batches) == spent["merges"] + spent["merges_skipped"], item.key
        if item.method.grouping == "sample":
            assert spent["merges"] == spent["image_forward_calls"]["merged"] == 0
            assert spent["image_forward_calls"]["per-sample"] == 2 * TILES
            assert spent["image_forward_images"]["per-sample"] == 2 * spent["images_read"] == 2 * IMAGES
            continue
        assert spent["image_forward_calls"]["merged"] == sum(-(-size // 32) for size in batches["size"].to_pylist())
        assert spent["image_forward_images"]["merged"] == spent["images_read"] == IMAGES
        changes = len({lam for lam in batches["lambda"].to_pylist() if lam not in {0.0, 1.0}})
        assert spent["merges"] >= min(changes, len(batches)), item.key


def test_the_oracle_costs_a_forward_per_tile_and_inner_point_of_its_grid(everything: Everything) -> None:
    spent = everything.spent("oracle")
    assert spent["image_forward_calls"]["merged"] == len(GRID) * TILES
    assert spent["image_forward_images"]["merged"] == len(GRID) * IMAGES
    assert spent["merges"] == len(GRID) * PARTS
    assert spent["images_read"] == IMAGES


def test_a_second_command_computes_nothing(everything: Everything) -> None:
    before = modification_times(everything.run)
    summary = run_infer(everything.manifest)
    assert (summary.computed, summary.skipped) == (0, len(everything.selected) * PARTS)
    assert summary.samples == 0
    counts = summary.ledger.as_json()["counts"]
    assert sum(sum(counts[kind].values()) for kind in ("image_forward_calls", "text_forward_calls")) == 0
    assert (counts["merges"], counts["images_read"]) == (0, 0)
    assert modification_times(everything.run) == before
    assert everything.spent("soup")["merges"] == 1


# Static methods against plain numpy and plain open_clip.


def plain_merge(entry: Mapping[str, Any], generalist: Weights, expert: Weights, lam: float) -> Weights:
    """The merge that an entry of ``methods`` names, in float64; ``lam`` is what mixup drew."""
    match entry["name"]:
        case "soup":
            return _line(generalist, expert, entry.get("alpha", 0.5))
        case "mean":
            return {key: np.mean([generalist[key], expert[key]], axis=0) for key in generalist}
        case "task-arithmetic":
            scale = entry.get("scale", 0.3)
            return {key: value + scale * (expert[key] - value) for key, value in generalist.items()}
        case "slerp":
            return {key: _arc(value, expert[key], entry.get("alpha", 0.5)) for key, value in generalist.items()}
        case "ties":
            return _trimmed_task(generalist, expert, entry.get("density", 0.2), entry.get("scale", 1.0))
        case "mixup":
            return _line(generalist, expert, lam)
    raise AssertionError(entry)


def _line(generalist: Weights, expert: Weights, lam: float) -> Weights:
    return {key: (1 - lam) * value + lam * expert[key] for key, value in generalist.items()}


def _arc(a: NDArray[np.float64], b: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    if a.size == 1 or not a.any() or np.array_equal(a, b):
        return (1 - alpha) * a + alpha * b
    angle = np.arccos(np.clip(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
    return (np.sin((1 - alpha) * angle) * a + np.sin(alpha * angle) * b) / np.sin(angle)


def _trimmed_task(generalist: Weights, expert: Weights, density: float, scale: float) -> Weights:
    """TIES with one expert: the sign election has no effect, and the disjoint mean is the trimmed vector itself."""
    change = {key: np.atleast_1d(expert[key] - value) for key, value in generalist.items()}
    magnitudes = np.sort(np.concatenate([np.abs(value).ravel() for value in change.values()]))
    # Magnitudes are compared in float32; a hair below the smallest that stays keeps exactly those.
    threshold = magnitudes[-round(density * len(magnitudes))] * (1 - 1e-7)
    kept = {key: np.where(np.abs(value) >= threshold, value, 0.0) for key, value in change.items()}
    return {key: value + scale * kept[key].reshape(value.shape) for key, value in generalist.items()}


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


# Dynamic methods against the formulas in float64 and a plain merge loop.


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


def read_plan(manifest: Manifest, item: Selected) -> pa.Table:
    assert item.rule is not None
    assert item.grouping is not None
    folder = Path(manifest.output) / "coefficients" / item.rule.folder / "cells" / "batches" / item.grouping.folder
    return read_parts(folder)


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
        state = single_precision(_line(generalist, expert, float(np.mean([lam_of[row] for row in rows]))))
        # Class embeddings are interpolated along λ: the curve's own tolerance, not the merge's, bounds the difference.
        expected = plain.probabilities(state, rows)
        np.testing.assert_allclose([ours[row] for row in rows], expected, rtol=0, atol=1e-4)


# The oracle.


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


# Labels.


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, pair: Path, archives: Path) -> Path:
    """Archives in which two cells have lost their labels: no source kind of today makes one."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for path in archives.rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(archives)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    part = folder / "cells" / "samples" / "part-00001.parquet"
    table = pq.ParquetFile(part).read()
    labels = pa.array([None, None, *table["label"].to_pylist()[2:]], table["label"].type)
    pq.write_table(table.set_column(table.column_names.index("label"), "label", labels), part)
    return folder


@pytest.mark.parametrize("command", ["precompute", "infer"])
@pytest.mark.parametrize("method", ["oracle", "x-entropy-ratio", "x-entropy-ratio-mixture"])
def test_a_method_that_needs_labels_is_refused_by_name_of_method_and_set_where_one_is_missing(
    pair: Path, unlabelled: Path, tmp_path: Path, command_line: CommandLine, command: str, method: str
) -> None:
    manifest = study(tmp_path, pair, unlabelled, methods=["t3-batch", method])
    code, _, err = command_line(command, str(tmp_path / MANIFEST), "--engine", "local")
    assert code == 2
    assert err.splitlines() == [
        f"error: evaluation set 'cells': method '{method}' needs labels, but 2 images have none; "
        "leave it out, or label them"
    ]
    assert result_files(Path(manifest.output)) == {}


def test_images_without_labels_are_answered_by_every_method_that_needs_none(
    pair: Path, unlabelled: Path, tmp_path: Path
) -> None:
    manifest = study(tmp_path, pair, unlabelled, methods=["ensemble", "soup", "dawin-batch", "entropy-adaptive"])
    run_precompute(manifest)
    run_infer(manifest)
    for item in select_methods(manifest):
        assert read_answers(manifest, item.key)["label"].null_count == 2
        assert len(read_answers(manifest, item.key)) == IMAGES


# Equal work gives equal bytes.


def files_of(run: Path, *keys: str) -> dict[str, bytes]:
    """Bytes of the tables and weights of these methods."""
    paths = [path for table in ("predictions", "grid", "merged") for path in (run / table).rglob("*.*")]
    chosen_paths = [path for path in paths if path.is_file() and path.relative_to(run).parts[1] in keys]
    return {str(path.relative_to(run)): path.read_bytes() for path in chosen_paths}


def test_online_equals_precomputed_to_the_byte_for_every_kind_of_weights(
    everything: Everything, pair: Path, archives: Path, tmp_path: Path
) -> None:
    names = ["dawin-batch", "t3-mixture", "entropy-adaptive"]
    online = study(tmp_path, pair, archives, methods=names)
    summary = run_infer(online, online=True)
    calls = summary.ledger.per_model["image_forward_calls"]
    assert calls["generalist"] == calls["expert"] == len(names) * TILES
    keys = [item.key for item in select_methods(online)]
    assert result_files(Path(online.output), "evidence", "coefficients") == {}
    found, expected = files_of(Path(online.output), *keys), files_of(everything.run, *keys)
    assert_same_files(found, expected)
    assert len(expected) == len(names) * PARTS


def test_methods_without_coefficients_are_refused_online(
    everything: Everything, pair: Path, archives: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    study(tmp_path, pair, archives, methods=["soup", "oracle", "t3-batch"])
    arguments = ("infer", str(tmp_path / MANIFEST), "--engine", "local", "--online", "--method", "oracle")
    code, _, err = command_line(*arguments)
    assert code == 2
    assert err.splitlines() == ["error: --online: oracle needs no λ to be cached; leave out --online, or the method"]


def test_any_order_of_work_leaves_the_same_files(
    everything: Everything, pair: Path, archives: Path, tmp_path: Path
) -> None:
    manifest = study(tmp_path, pair, archives, methods=["soup", "oracle", "entropy-adaptive", "t3-mixture"])
    engine = ShuffledEngine(manifest, workers=2, seed=5)
    precompute(manifest, engine)
    infer(manifest, engine)
    keys = [item.key for item in select_methods(manifest)]
    found, expected = files_of(Path(manifest.output), *keys), files_of(everything.run, *keys)
    assert_same_files(found, expected)
    assert {name.split("/")[0] for name in expected} == {"predictions", "grid", "merged"}


class Stopped(Exception):  # noqa: N818 - it is no error, it is what a kill looks like from inside
    pass


@dataclass
class StoppingEngine:
    """Runs this many items and is gone."""

    manifest: Manifest
    items: int

    def run(self, job: Job, on_report: Callable[[Report], None]) -> None:
        worker = job.make_worker()
        for item in job.items[: self.items]:
            on_report(worker.run(item))
        raise Stopped

    def numeric_kind(self) -> Mapping[str, str]:
        return LocalEngine(self.manifest).numeric_kind()


def test_a_run_that_ends_in_the_middle_is_resumed_without_a_second_merge_or_forward(
    everything: Everything, finished: Manifest, pair: Path, tmp_path: Path
) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=["ties", "oracle"])
    for items in (3, 4):
        with pytest.raises(Stopped):
            infer(manifest, StoppingEngine(manifest, items))
    committed = modification_times(Path(manifest.output))
    weights = Path(manifest.output) / "merged" / "ties" / "weights.safetensors"
    merged_at = weights.stat().st_mtime_ns
    summary = run_infer(manifest)
    # All of ties' predictions lay there, and two parts of the oracle's grid, which are no predictions yet.
    assert (summary.computed, summary.skipped) == (PARTS, PARTS)
    now = modification_times(Path(manifest.output))
    assert {name: now[name] for name in committed} == committed
    assert weights.stat().st_mtime_ns == merged_at
    assert_same_files(files_of(Path(manifest.output), "ties", "oracle"), files_of(everything.run, "ties", "oracle"))
    record = json.loads((Path(manifest.output) / "run.json").read_text())["ledger"]["infer"]
    for method in ("ties", "oracle"):
        ours, theirs = record[method]["counts"], everything.spent(method)
        assert ours == theirs


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
def test_torn_or_lost_weights_of_a_static_method_are_merged_again_and_counted_once(
    everything: Everything, finished: Manifest, pair: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=["slerp"])
    run_infer(manifest)
    run = Path(manifest.output)
    damage(run / "merged" / "slerp" / "weights.safetensors")
    (run / "predictions" / "slerp" / "cells" / "part-00002.parquet").unlink()
    summary = run_infer(manifest)
    assert (summary.computed, summary.skipped) == (1, PARTS - 1)
    assert_same_files(files_of(run, "slerp"), files_of(everything.run, "slerp"))
    counts = json.loads((run / "run.json").read_text())["ledger"]["infer"]["slerp"]["counts"]
    assert counts == everything.spent("slerp")


def test_weights_merged_from_others_are_refused(
    finished: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=["soup", "slerp"])
    run_infer(manifest)
    merged = Path(manifest.output) / "merged"
    (merged / "slerp" / "weights.safetensors").write_bytes((merged / "soup" / "weights.safetensors").read_bytes())
    code, _, err = command_line("infer", str(tmp_path / MANIFEST), "--engine", "local")
    assert code == 2
    (line,) = err.splitlines()
    assert f"{merged / 'slerp' / 'weights.safetensors'}: method changed since it was merged" in line


# What a review found.


@pytest.mark.parametrize("command", ["precompute", "infer", "validate"])
@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"name": "t3-batch", "order": "temporal"}, "'t3-batch' with order temporal"),
        ({"name": "own:rule", "labels": "given"}, "'own.rule'"),
    ],
    ids=["stream", "rule"],
)
def test_labels_that_a_stream_or_a_rule_asks_for_must_be_there(
    pair: Path,
    unlabelled: Path,
    tmp_path: Path,
    command_line: CommandLine,
    command: str,
    entry: dict[str, Any],
    named: str,
) -> None:
    study(tmp_path, pair, unlabelled, methods=["t3-batch", entry])
    engine = () if command == "validate" else ("--engine", "local")
    code, _, err = command_line(command, str(tmp_path / MANIFEST), "--allow-code", *engine)
    assert code == 2
    assert err.splitlines() == [
        f"error: evaluation set 'cells': method {named} needs labels, but 2 images have none; "
        "leave it out, or label them"
    ]
    assert result_files(tmp_path / "run") == {}


def test_a_manifest_without_a_method_that_merges_per_batch_is_refused_online(
    pair: Path, archives: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    study(tmp_path, pair, archives, methods=["generalist", "soup", "oracle"])
    code, out, err = command_line("infer", str(tmp_path / MANIFEST), "--engine", "local", "--online")
    assert (code, out) == (2, "")
    assert err.splitlines() == ["error: --online: none of the manifest's methods merges per batch; leave out --online"]
    assert not (tmp_path / "run").exists()


def test_the_record_of_a_run_names_versions_and_spells_out_every_methods_settings(everything: Everything) -> None:
    record = json.loads((everything.run / "run.json").read_text())
    for package in ("torch", "timm", "safetensors", "open_clip_torch"):
        assert record["versions"][package] == metadata.version(package)
    spelled = record["method_settings"]
    assert record["variants"] == [item.key for item in everything.selected]
    assert sorted(spelled) == sorted(record["variants"])
    assert spelled["generalist"] == {}
    assert spelled["soup"] == {"alpha": 0.5}
    assert spelled[chosen(everything.manifest, "soup", alpha=0.4).key] == {"alpha": 0.4}
    assert spelled["mixup"] == {"distribution": "beta", "alpha": 0.5, "seed": 0}
    batch = spelled[chosen(everything.manifest, "t3-batch", order="dirichlet(0.05)").key]
    assert batch["grouping"] == {
        "name": "arrival",
        "batch_size": 32,
        "order": "dirichlet(0.05)",
        "seed": 0,
        "window": {"rows": WINDOW_ROWS, "bytes": 8 << 30},
    }
    assert batch["rule"].items() >= {"name": "t3", "gamma": 1.0, "delta": 0.5, "mapping": "sigmoid"}.items()


def test_the_settings_of_a_static_merge_are_there_after_a_kill_right_behind_its_weights(
    finished: Manifest, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=[{"name": "soup", "alpha": 0.4}])
    (item,) = select_methods(manifest)

    def write_and_die(*arguments: Any) -> None:
        write_checkpoint(*arguments)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.static.write_checkpoint", write_and_die)
        with pytest.raises(Stopped):
            run_infer(manifest)
    weights = Path(manifest.output) / "merged" / item.key / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    assert run_infer(manifest).computed == PARTS
    assert weights.stat().st_mtime_ns == written
    spelled = json.loads((Path(manifest.output) / "merged" / f"{item.key}.json").read_text())
    assert (spelled["name"], spelled["settings"]) == ("soup", {"alpha": 0.4})
    counts = json.loads((Path(manifest.output) / "run.json").read_text())["ledger"]["infer"][item.key]["counts"]
    assert counts["merges"] == 1
