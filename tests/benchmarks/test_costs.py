"""The oracle is the price list that the measurements were made from."""

import numpy as np
import pytest

from pipeline.costs import CostModel, fit_costs

PRICES = {"forward": 0.01, "merge": 0.4, "batch": 1e-4}
WORKS = [
    {"forward": 32.0, "batch": 1.0},
    {"forward": 64.0, "merge": 2.0, "batch": 2.0},
    {"forward": 1.0, "merge": 1.0, "batch": 1.0},
    {"forward": 320.0, "merge": 1.0, "batch": 10.0},
]


def seconds_of(work: dict[str, float]) -> float:
    return sum(count * PRICES[name] for name, count in work.items())


def test_prices_that_explain_all_measurements_are_found() -> None:
    fitted = fit_costs([(work, seconds_of(work)) for work in WORKS])
    assert fitted.seconds == pytest.approx(PRICES)
    assert fitted.predict({"forward": 5, "merge": 3, "batch": 0}) == pytest.approx(0.05 + 1.2)


def test_short_work_counts_as_much_as_long_work() -> None:
    generator = np.random.default_rng(0)
    noisy = [(work, seconds_of(work) * generator.normal(1, 0.02)) for work in WORKS * 20]
    fitted = fit_costs(noisy)
    # By absolute errors the long work would decide, and a merge's price would drown in its noise.
    assert fitted.seconds["merge"] == pytest.approx(PRICES["merge"], rel=0.05)


def test_no_price_is_negative() -> None:
    fitted = fit_costs([({"forward": 1.0}, 1.0), ({"forward": 1.0, "merge": 1.0}, 0.5)])
    assert all(price >= 0 for price in fitted.seconds.values())


def test_an_operation_without_a_price_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no price is known for merge, read"):
        CostModel({"forward": 1.0}).predict({"forward": 1, "read": 2, "merge": 1})
    assert CostModel({"forward": 1.0}).predict({"forward": 2, "merge": 0}) == 2.0


def test_what_cannot_be_told_apart_is_paid_for_by_the_more_frequent_operation() -> None:
    plain, merged = {"forward": 32.0, "batch": 1.0}, {"forward": 32.0, "batch": 1.0, "merge": 1.0}
    fitted = fit_costs([(plain, 3.2), (merged, 3.3)])
    assert fitted.seconds == pytest.approx({"forward": 0.1, "merge": 0.1, "batch": 0.0})
    # By a price for the batch alone, three passes in one batch would cost what one does.
    assert fitted.predict({"forward": 96, "batch": 1, "merge": 1}) == pytest.approx(9.7)
