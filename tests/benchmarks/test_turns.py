import itertools
import math

import pytest

from pipeline.benchmarks.turns import median_ratio, take_turns


def test_all_ways_go_once_a_turn_and_every_other_turn_backwards() -> None:
    order: list[tuple[str, int]] = []
    ways = {name: (lambda turn, name=name: order.append((name, turn))) for name in "abc"}
    seconds = take_turns(ways, pairs=3, warm=1)
    assert [turn for _, turn in order] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert ["".join(name for name, turn in order if turn == at) for at in range(4)] == ["abc", "cba", "abc", "cba"]
    # The warming turn is dropped.
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_ratio_is_the_median_over_pairs_not_of_sums() -> None:
    ratio = median_ratio([2.0, 3.0, 400.0], [1.0, 1.0, 100.0])
    assert ratio.median == 3.0
    assert (ratio.low, ratio.high) == (2.0, 4.0)


@pytest.mark.parametrize(("pairs", "left_out"), [(3, 0), (6, 0), (8, 0), (9, 1), (12, 2), (20, 5)])
def test_the_interval_is_the_sign_tests(pairs: int, left_out: int) -> None:
    ratios = [float(value) for value in range(1, pairs + 1)]
    found = median_ratio(ratios[::-1], [1.0] * pairs)
    assert (found.low, found.high) == (ratios[left_out], ratios[-1 - left_out])
    # The probability that a fair coin's heads number lies outside what was left out, counted one by one.
    outside = 2 * sum(math.comb(pairs, count) for count in range(left_out + 1)) / 2**pairs
    assert found.confidence == pytest.approx(1 - outside)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    # All orders of sign around the true median 0.5 of a fair coin per pair, exactly enumerated for 9 pairs.
    held = 0
    for signs in itertools.product((0.4, 0.6), repeat=9):
        found = median_ratio(list(signs), [1.0] * 9)
        held += found.low <= 0.5 <= found.high
    assert held / 2**9 == pytest.approx(median_ratio(list(range(1, 10)), [1.0] * 9).confidence)
