"""K sources through both stages: weights per batch from entropies, merges as open_clip would answer, skewed streams."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from pipeline.drivers.infer import infer
from pipeline.drivers.precompute import precompute
from pipeline.engines.engine import choose_engine
from pipeline.errors import StaleCacheError
from pipeline.manifest import Manifest
from pipeline.results.layout import read_run
from pipeline.results.ledger import ledger_rows
from pipeline.stages.selection import select_methods
from tests.main_job.factory import (
    PlainClip,
    ShuffledEngine,
    assert_same_files,
    chosen,
    matrix,
    numpy_weights,
    read_answers,
    read_evidence,
    result_files,
    run_both,
    run_infer,
    run_precompute,
    single_precision,
    study_of_sources,
)
from tests.main_job.sources import (
    SITES,
    Weights,
    average,
    batches_of,
    copy_run_of_sources,
    mean_entropies,
    merged_probabilities,
    read_plan,
    stored_probabilities,
)

BATCH, TILES = 32, 4 + 4 + 4 + 1 + 3
WINDOWS = [(0, 256), (256, 400), (512, 602)]
COUPLED: dict[str, Any] = {"name": "entropy-adaptive"}
DECOUPLED = COUPLED | {"temperature": 0.3, "temperature_head": 0.1}
STREAMS = ("iid", "temporal", "dirichlet(0.05)")
STREAMED = [COUPLED | {"order": order} for order in STREAMS]
ENTRIES: list[Any] = [*SITES, "ensemble", "mean", COUPLED, DECOUPLED, *STREAMED]
# Ray warns of its own default settings when it reads them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path], archives: Path) -> Manifest:
    """Both stages with every method of these tests. Not to be written to."""
    return run_both(study_of_sources(tmp_path_factory.mktemp("run"), models, archives, methods=ENTRIES))


@pytest.fixture(scope="module")
def weights(models: dict[str, Path]) -> list[Weights]:
    return [numpy_weights(path) for path in models.values()]


def test_evidence_has_logits_and_entropy_of_every_source_and_no_divergence(run: Manifest) -> None:
    evidence = read_evidence(run)
    logits, entropies = ([f"{figure}_{name}" for name in SITES] for figure in ("logits", "entropy"))
    about = ["row", "sample_id", "label", "group_id", "corruption", "severity"]
    assert evidence.column_names == [*about, *logits, *entropies]
    for name in SITES:
        log_p = log_softmax(matrix(evidence, f"logits_{name}"), axis=1)
        expected = -(np.exp(log_p) * log_p).sum(axis=1)
        np.testing.assert_allclose(evidence[f"entropy_{name}"].to_numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("position", range(3), ids=SITES)
def test_a_single_source_answers_as_plain_open_clip_does(
    run: Manifest, plain: PlainClip, weights: list[Weights], position: int
) -> None:
    rows = sorted(plain.images)
    expected = plain.probabilities(single_precision(weights[position]), rows)
    found = read_answers(run, SITES[position])
    assert found["row"].to_pylist() == rows
    np.testing.assert_allclose(matrix(found, "probabilities"), expected, rtol=0, atol=1e-5)
    assert found["lambda"].null_count == found["batch"].null_count == len(rows)
    assert found["label"].to_pylist() == [plain.labels[row] for row in rows]


def test_the_mean_answers_as_open_clip_with_the_average_of_all_weights(
    run: Manifest, plain: PlainClip, weights: list[Weights]
) -> None:
    expected = plain.probabilities(single_precision(average(weights, [1 / 3] * 3)), sorted(plain.images))
    found = matrix(read_answers(run, "mean"), "probabilities")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for name in SITES:
        assert np.abs(found - matrix(read_answers(run, name), "probabilities")).max() > 0.1


def test_the_ensemble_averages_the_logits_of_all_sources(run: Manifest) -> None:
    evidence = read_evidence(run)
    mean = np.mean([matrix(evidence, f"logits_{name}") for name in SITES], axis=0)
    found = matrix(read_answers(run, "ensemble"), "probabilities")
    np.testing.assert_allclose(found, softmax(mean, axis=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "encoder", "head"),
    [
        ({"temperature": 1.0, "temperature_head": None, "order": "arrival"}, 1.0, 1.0),
        ({"temperature": 0.3, "temperature_head": 0.1}, 0.3, 0.1),
        ({"order": "dirichlet(0.05)"}, 1.0, 1.0),
    ],
    ids=["coupled", "decoupled", "stream"],
)
def test_weights_are_the_formula_in_float64(
    run: Manifest, settings: dict[str, Any], encoder: float, head: float
) -> None:
    plan = read_plan(run, **settings)
    entropies = mean_entropies(run, plan)
    for column, temperature in (("weights_encoder", encoder), ("weights_head", head)):
        expected = softmax(-entropies / temperature, axis=1)
        found = matrix(plan, column)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=1e-6)
        assert np.ptp(found, axis=0).min() > 1e-3
    assert (plan["weights_encoder"] == plan["weights_head"]) == (encoder == head)
    assert {plan[name].null_count for name in ("lambda", "lambda_min", "lambda_max")} == {len(plan)}


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0, "order": "arrival"}, {"temperature_head": 0.1}, {"order": "temporal"}],
    ids=["coupled", "decoupled", "stream"],
)
def test_a_batch_is_answered_by_its_own_merge_of_all_sources(
    run: Manifest, plain: PlainClip, weights: list[Weights], settings: dict[str, Any]
) -> None:
    plan = read_plan(run, **settings)
    found = stored_probabilities(run, chosen(run, "entropy-adaptive", **settings).key)
    shares = zip(batches_of(plan), matrix(plan, "weights_encoder"), matrix(plan, "weights_head"), strict=True)
    for rows, encoder, head in [*shares][::3]:
        expected = merged_probabilities(plain, weights, rows, encoder, head)
        np.testing.assert_allclose([found[row] for row in rows], expected, rtol=0, atol=1e-5)


def test_the_batches_of_arrival_are_runs_of_addresses(run: Manifest) -> None:
    expected = [
        list(range(start, min(start + BATCH, last))) for first, last in WINDOWS for start in range(first, last, BATCH)
    ]
    assert batches_of(read_plan(run, temperature=1.0, order="arrival")) == expected


@pytest.mark.parametrize("order", STREAMS)
def test_a_stream_holds_every_row_once_in_batches_of_one_size_inside_its_window(run: Manifest, order: str) -> None:
    plan = read_plan(run, order=order)
    streamed = [row for rows in batches_of(plan) for row in rows]
    arrived = [row for first, last in WINDOWS for row in range(first, last)]
    assert streamed != arrived
    start = 0
    for first, last in WINDOWS:
        assert sorted(streamed[start : start + last - first]) == list(range(first, last))
        start += last - first
    assert start == len(streamed)
    assert plan["size"].to_pylist() == [BATCH] * 8 + [BATCH] * 4 + [16] + [BATCH] * 2 + [26]
    assert list(map(len, batches_of(plan))) == plan["size"].to_pylist()
    answers = read_answers(run, chosen(run, "entropy-adaptive", order=order).key)
    assert answers["row"].to_pylist() == arrived
    numbered = zip(batches_of(plan), plan["batch"].to_pylist(), strict=True)
    number = {row: batch for rows, batch in numbered for row in rows}
    assert answers["batch"].to_pylist() == [number[row] for row in arrived]


def test_streams_are_as_skewed_as_they_say(run: Manifest, plain: PlainClip) -> None:
    """The share of a batch's commonest class: that of the whole for iid, near 1 for a small α, runs for temporal."""

    def skew(order: str) -> float:
        labels = [np.array([plain.labels[row] for row in rows]) for rows in batches_of(read_plan(run, order=order))]
        return float(np.mean([np.bincount(found).max() / len(found) for found in labels]))

    assert skew("iid") < 0.45
    assert skew("dirichlet(0.05)") > skew("iid") + 0.2
    assert skew("temporal") > skew("iid") + 0.3
    streamed = [row for rows in batches_of(read_plan(run, order="temporal")) for row in rows]
    for first, last in WINDOWS:
        labels = [plain.labels[row] for row in streamed if first <= row < last]
        changes = sum(before != after for before, after in pairwise(labels))
        assert changes == len(set(labels)) - 1


def test_another_seed_is_another_stream_in_a_folder_of_its_own(
    run: Manifest, models: dict[str, Path], tmp_path: Path
) -> None:
    seeded = copy_run_of_sources(run, models, tmp_path, methods=[COUPLED, *STREAMED], seeds={"order": 1})
    run_infer(seeded)
    for order in STREAMS:
        first, second = (chosen(manifest, "entropy-adaptive", order=order) for manifest in (run, seeded))
        assert first.key != second.key
        assert first.rule == second.rule
        streams = [batches_of(read_plan(manifest, order=order)) for manifest in (run, seeded)]
        assert streams[0] != streams[1]
        spelled = json.loads((Path(seeded.output) / "predictions" / f"{second.key}.json").read_text())
        assert spelled["changed"].items() >= {"order": order, "seed": 1}.items()
        assert spelled["settings"]["grouping"]["seed"] == 1
    keys = {chosen(manifest, "entropy-adaptive", order="arrival").key for manifest in (run, seeded)}
    assert len(keys) == 1


def test_weights_cached_for_another_order_of_the_sources_are_refused(
    run: Manifest, models: dict[str, Path], tmp_path: Path
) -> None:
    """Weights are stored in the manifest's order: read in another one they would be given to the wrong sources."""
    backwards = {name: models[name] for name in reversed(SITES)}
    manifest = copy_run_of_sources(run, backwards, tmp_path, methods=[COUPLED])
    with pytest.raises(StaleCacheError, match=r"sources changed .*now site-c, site-b, site-a"):
        run_infer(manifest)


def test_online_leaves_the_predictions_of_the_cached_way(
    run: Manifest, models: dict[str, Path], archives: Path, tmp_path: Path
) -> None:
    online = study_of_sources(tmp_path, models, archives, methods=ENTRIES)
    summary = run_infer(online, online=True)
    assert result_files(Path(online.output), "evidence", "coefficients") == {}
    calls = summary.as_json()["ledger"]["counts"]["image_forward_calls"]
    assert calls == {"generalist": 0, "expert": 0, "merged": 5 * TILES} | dict.fromkeys(SITES, 5 * TILES)
    expected = result_files(Path(run.output), "predictions")
    merging = {name: content for name, content in expected.items() if "/entropy-adaptive" in name}
    assert len(merging) == 5 * 5
    assert_same_files(result_files(Path(online.output), "predictions"), merging)


def test_any_order_and_number_of_workers_leave_the_same_files(
    run: Manifest, models: dict[str, Path], archives: Path, tmp_path: Path
) -> None:
    manifest = study_of_sources(tmp_path, models, archives, methods=ENTRIES)
    engine = ShuffledEngine(manifest, workers=3, seed=4)
    precompute(manifest, engine)
    infer(manifest, engine)
    assert_same_files(_all_files(manifest), _all_files(run))


@pytest.mark.usefixtures("cluster")
def test_ray_leaves_the_files_of_the_local_engine(
    run: Manifest, models: dict[str, Path], archives: Path, tmp_path: Path
) -> None:
    manifest = study_of_sources(tmp_path, models, archives, methods=["mean", DECOUPLED])
    engine = choose_engine("ray", manifest, 2)
    first, second = precompute(manifest, engine), infer(manifest, engine)
    assert (first.computed, second.computed) == (5, 2 * 5)
    found, everything = _all_files(manifest), _all_files(run)
    assert sum(name.startswith("predictions/") for name in found) == 2 * 5
    assert_same_files(found, {name: everything[name] for name in found})
    for stage in ("precompute", "mean"):
        assert _counts(manifest)[stage] == _counts(run)[stage]


def _all_files(manifest: Manifest) -> dict[str, bytes]:
    root = Path(manifest.output)
    merged = {str(path.relative_to(root)): path.read_bytes() for path in (root / "merged").rglob("weights.safetensors")}
    assert list(merged) == ["merged/mean/weights.safetensors"]
    return result_files(root) | merged


def _counts(manifest: Manifest) -> dict[str, dict[str, Any]]:
    ledger = read_run(Path(manifest.output))["ledger"]
    totals = {"precompute": ledger["precompute"], **ledger["infer"]}
    return {name: total["counts"] for name, total in totals.items()}


def test_stage_one_costs_a_forward_of_every_source_per_batch(run: Manifest) -> None:
    found = _counts(run)["precompute"]
    assert found["image_forward_calls"] == {"generalist": 0, "expert": 0, "merged": 0} | dict.fromkeys(SITES, TILES)
    assert found["image_forward_images"] == {"generalist": 0, "expert": 0, "merged": 0} | dict.fromkeys(SITES, 490)
    assert (found["images_read"], found["samples"], found["merges"]) == (490, 490, 0)
    assert sum(found["text_forward_calls"].values()) == len(SITES)


def test_stage_two_costs_a_forward_of_the_merged_model_per_batch(run: Manifest) -> None:
    counts = _counts(run)
    merging = [item.key for item in select_methods(run) if item.method.name in {"entropy-adaptive", "mean"}]
    assert len(merging) == 6
    for key in merging:
        found = counts[key]
        assert found["image_forward_calls"]["merged"] == TILES
        assert found["image_forward_images"]["merged"] == found["images_read"] == found["samples"] == 490
        assert sum(found["image_forward_calls"].values()) == TILES
        if key == "mean":
            assert (found["merges"], sum(found["text_forward_calls"].values())) == (1, 1)
        else:
            assert found["merges"] + found["merges_skipped"] == found["batches"] == TILES
            assert sum(found["text_forward_calls"].values()) == 0
    for key in (*SITES, "ensemble"):
        assert sum(counts[key]["image_forward_calls"].values()) == counts[key]["images_read"] == 0


def test_the_ledger_tells_the_cost_class(run: Manifest) -> None:
    rows = ledger_rows(read_run(Path(run.output)))
    assert [row.method for row in rows] == [None, *(item.key for item in select_methods(run))]
    assert [row.cost for row in rows] == [3.0, None, None, None, None, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_a_repeated_command_computes_nothing(run: Manifest, models: dict[str, Path], tmp_path: Path) -> None:
    manifest = copy_run_of_sources(run, models, tmp_path, methods=ENTRIES)
    before = _all_files(manifest)
    for summary, skipped in ((run_precompute(manifest), 5), (run_infer(manifest), 5 * len(ENTRIES))):
        assert (summary.computed, summary.skipped, summary.ledger.totals["images_read"]) == (0, skipped, 0)
    assert _all_files(manifest) == before
