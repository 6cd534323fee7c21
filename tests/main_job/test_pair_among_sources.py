"""A generalist and an expert that are named under sources: the answers of a pair, in any order and among others."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.manifest import Manifest
from tests.main_job.factory import (
    PlainClip,
    chosen,
    copy_run,
    matrix,
    numpy_weights,
    read_answers,
    read_evidence,
    read_predictions,
    run_both,
    run_infer,
    run_precompute,
    single_precision,
    study_of_sources,
)
from tests.main_job.sources import (
    average,
    batches_of,
    copy_run_of_sources,
    mean_entropies,
    merged_probabilities,
    read_plan,
    stored_probabilities,
)

PAIR = ("generalist", "expert")


@pytest.fixture(scope="module")
def both(finished: Manifest, pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("both")
    manifest = copy_run(finished, folder, pair, methods=["entropy-adaptive", "mean", "soup", "t3-batch"])
    run_infer(manifest)
    return manifest


def test_lambda_is_the_experts_weight_in_the_encoder(both: Manifest) -> None:
    plan = read_plan(both)
    expected = softmax(-mean_entropies(both, plan, PAIR), axis=1)
    np.testing.assert_allclose(matrix(plan, "weights_encoder"), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(plan["lambda"].to_numpy(), expected[:, 1], rtol=0, atol=1e-6)
    answers = read_predictions(both, "entropy-adaptive")
    applied = dict(zip(answers["row"].to_pylist(), answers["lambda"].to_pylist(), strict=True))
    for rows, lam in zip(batches_of(plan), plan["lambda"].to_pylist(), strict=True):
        assert {applied[row] for row in rows} == {lam}


def test_batches_are_answered_by_their_own_merge(both: Manifest, plain: PlainClip, pair: Path) -> None:
    states = [numpy_weights(pair / f"{name}.safetensors") for name in PAIR]
    plan, found = read_plan(both), stored_probabilities(both, chosen(both, "entropy-adaptive").key)
    for rows, encoder in [*zip(batches_of(plan), matrix(plan, "weights_encoder"), strict=True)][::5]:
        expected = merged_probabilities(plain, states, rows, encoder, encoder)
        np.testing.assert_allclose([found[row] for row in rows], expected, rtol=0, atol=1e-5)


def test_the_mean_is_the_soup_of_equal_parts(both: Manifest, plain: PlainClip, pair: Path) -> None:
    states = [numpy_weights(pair / f"{name}.safetensors") for name in PAIR]
    expected = plain.probabilities(single_precision(average(states, [0.5, 0.5])), sorted(plain.images))
    for method in ("mean", "soup"):
        found = matrix(read_predictions(both, method), "probabilities")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def named_backwards(pair: Path, archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    models = {name: pair / f"{name}.safetensors" for name in reversed(PAIR)}
    methods = ["expert", "generalist", "t3-batch", "entropy-adaptive", "soup", "slerp"]
    return run_both(study_of_sources(tmp_path_factory.mktemp("sources"), models, archives, methods=methods))


def test_the_order_in_which_a_pair_is_named_changes_no_answer(
    both: Manifest, named_backwards: Manifest, finished: Manifest
) -> None:
    for manifest, method in ((finished, "expert"), (both, "t3-batch"), (both, "entropy-adaptive"), (both, "soup")):
        expected, found = (read_predictions(run, method) for run in (manifest, named_backwards))
        np.testing.assert_allclose(matrix(found, "probabilities"), matrix(expected, "probabilities"), rtol=0, atol=1e-5)
        lambdas = [answers["lambda"].to_numpy() for answers in (found, expected)]
        np.testing.assert_allclose(*lambdas, rtol=0, atol=1e-6)


def test_divergence_is_that_of_the_pair_wherever_it_stands(finished: Manifest, named_backwards: Manifest) -> None:
    expected, found = (read_evidence(run)["js"].to_numpy() for run in (finished, named_backwards))
    np.testing.assert_array_equal(found, expected)


def test_a_pair_among_other_sources_has_both_kinds_of_methods(
    pair: Path, models: dict[str, Path], archives: Path, finished: Manifest, tmp_path: Path, plain: PlainClip
) -> None:
    named = {
        "generalist": pair / "generalist.safetensors",
        "site-b": models["site-b"],
        "expert": pair / "expert.safetensors",
    }
    manifest = study_of_sources(tmp_path, named, archives, methods=["t3-batch", "entropy-adaptive", "task-arithmetic"])
    run_both(manifest)
    evidence = read_evidence(manifest)
    np.testing.assert_array_equal(evidence["js"].to_numpy(), read_evidence(finished)["js"].to_numpy())
    expected, found = (matrix(read_predictions(run, "t3-batch"), "probabilities") for run in (finished, manifest))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert read_predictions(manifest, "entropy-adaptive")["lambda"].null_count == 490
    states = [numpy_weights(path) for path in named.values()]
    base, *experts = states
    summed = {key: base[key] + 0.3 * sum(expert[key] - base[key] for expert in experts) for key in base}
    rows = sorted(plain.images)
    found = matrix(read_answers(manifest, "task-arithmetic"), "probabilities")
    np.testing.assert_allclose(found, plain.probabilities(single_precision(summed), rows), rtol=0, atol=1e-5)


def test_a_pair_named_under_sources_reuses_the_evidence_of_a_pair(
    finished: Manifest, pair: Path, tmp_path: Path
) -> None:
    models = {name: pair / f"{name}.safetensors" for name in ("generalist", "expert")}
    summary = run_precompute(copy_run_of_sources(finished, models, tmp_path))
    assert (summary.computed, summary.skipped) == (0, 5)
