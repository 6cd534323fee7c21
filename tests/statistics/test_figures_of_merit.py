import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from pipeline.statistics.calibration import BINS, confidence_bins, expected_calibration_error
from pipeline.statistics.corruption import balanced_error, relative_balanced_error
from pipeline.statistics.ranking import macro_auc


def test_calibration_error_by_hand() -> None:
    """Two images in the bin of 0.95, one of them right; one at 0.5 that is right, one at 0.41 that is not."""
    confidence = np.array([0.95, 0.95, 0.5, 0.41], np.float32)
    right = np.array([True, False, True, False])
    expected = (2 * abs(0.5 - 0.95) + abs(1 - 0.5) + abs(0 - 0.41)) / 4
    assert expected_calibration_error(confidence, right) == pytest.approx(expected, abs=1e-7)
    assert expected_calibration_error(np.zeros(0), np.zeros(0, bool)) is None


@given(st.integers(0, 2**32), st.integers(1, 300))
def test_calibration_error_is_the_weighted_gap_of_scikit_learns_calibration_curve(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.05, 0.999, count)
    right = generator.random(count) < confidence**2
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=BINS, strategy="uniform")
    sizes, _ = np.histogram(confidence, bins=BINS, range=(0, 1))
    expected = (np.abs(accuracy - mean_confidence) * sizes[sizes > 0]).sum() / count
    assert expected_calibration_error(confidence, right) == pytest.approx(expected)


def test_a_bin_has_its_upper_edge_and_certainty_lies_in_the_last() -> None:
    assert confidence_bins(np.array([0.0, 1 / 15, 1 / 15 + 1e-9, 0.5, 1.0])).tolist() == [0, 0, 1, 7, 14]


def test_area_under_the_curve_is_scikit_learns_one_vs_rest_mean() -> None:
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 4, 300)
    probabilities = generator.dirichlet(np.ones(4), 300)
    probabilities[np.arange(300), labels] += 0.2
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert macro_auc(labels, probabilities) == pytest.approx(expected)
    binary = probabilities[:, :2]
    assert macro_auc(labels // 2, binary) == pytest.approx(
        np.mean([roc_auc_score(labels // 2 == name, binary[:, name]) for name in (0, 1)])
    )


def test_classes_that_do_not_occur_have_no_curve() -> None:
    labels = np.array([0, 0, 2, 2])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    # By pairs. Class 0: 0.6 beats both others, 0.2 beats 0.1 only: 3 of 4. Class 2: 0.4 beats both, 0.1 ties with 0.1.
    assert macro_auc(labels, probabilities) == pytest.approx((3 / 4 + 2.5 / 4) / 2)
    assert macro_auc(labels[:2], probabilities[:2]) is None


def test_balanced_errors_equal_the_definition_by_hand() -> None:
    """Two corruptions at three severities: means over severities, their ratio, then the mean over corruptions."""
    errors = {"pixelate": [0.2, 0.3, 0.4], "jpeg": [0.1, 0.1, 0.4]}
    reference = {"pixelate": [0.5, 0.6, 0.7], "jpeg": [0.3, 0.4, 0.5]}
    assert balanced_error(errors, reference) == pytest.approx((0.3 / 0.6 + 0.2 / 0.4) / 2)
    relative = ((0.3 - 0.1) / (0.6 - 0.2) + (0.2 - 0.1) / (0.4 - 0.2)) / 2
    assert relative_balanced_error(errors, 0.1, reference, 0.2) == pytest.approx(relative)
    assert balanced_error(reference, reference) == 1.0
    assert relative_balanced_error(reference, 0.2, reference, 0.2) == pytest.approx(1.0)


def test_balanced_errors_follow_medmnist_cs_steps_on_predictions() -> None:
    """The evaluator of medmnistc-api, step by step with scikit-learn, with the reference's errors as its baseline."""
    generator = np.random.default_rng(8)
    true = generator.integers(0, 3, 60)

    def error(share_wrong: float) -> float:
        wrong = generator.random(60) < share_wrong
        return float(1 - balanced_accuracy_score(true, np.where(wrong, (true + 1) % 3, true)))

    names = ("pixelate", "motion_blur")
    ours = {name: [error(0.1 * severity) for severity in range(1, 6)] for name in names}
    baseline = {name: [error(0.15 * severity) for severity in range(1, 6)] for name in names}
    clean, clean_baseline = error(0.05), error(0.1)
    be = np.mean([np.mean(ours[name]) / np.mean(baseline[name]) for name in names])
    degradation = [(np.mean(ours[n]) - clean) / (np.mean(baseline[n]) - clean_baseline) for n in names]
    assert balanced_error(ours, baseline) == pytest.approx(be)
    assert relative_balanced_error(ours, clean, baseline, clean_baseline) == pytest.approx(np.mean(degradation))


def test_a_reference_without_error_or_that_does_not_get_worse_gives_no_ratio() -> None:
    errors = {"pixelate": [0.5], "jpeg": [0.5]}
    assert balanced_error(errors, {"pixelate": [0.1], "jpeg": [0.0]}) is None
    assert balanced_error({}, {}) is None
    thirds = {"pixelate": [1 / 3] * 3, "jpeg": [0.9] * 3}
    assert relative_balanced_error(errors, 0.2, thirds, 1 / 3) is None
    assert relative_balanced_error(errors, 0.2, thirds, 0.5) is None
