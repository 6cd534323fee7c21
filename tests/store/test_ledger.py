import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.ledger import MODELS, PER_MODEL, TOTALS, Ledger

COUNTS = st.integers(0, 10**9)


@st.composite
def ledgers(draw: st.DrawFn) -> Ledger:
    ledger = Ledger()
    for name in PER_MODEL:
        ledger.per_model[name].update(draw(st.dictionaries(st.sampled_from(MODELS), COUNTS)))
    ledger.totals.update(draw(st.dictionaries(st.sampled_from(TOTALS), COUNTS)))
    # Seconds are kept to the microsecond; quarters of a second add up without rounding.
    phases = st.dictionaries(st.sampled_from(["read", "forward", "write"]), st.integers(0, 10**6).map(lambda n: n / 4))
    ledger.seconds.update(draw(phases))
    return ledger


def flat(ledger: Ledger) -> dict[str, float]:
    value = ledger.as_json()
    counts = {f"{name}.{model}": value["counts"][name][model] for name in PER_MODEL for model in MODELS}
    return counts | {name: value["counts"][name] for name in TOTALS} | value["seconds"]


@given(ledgers())
def test_a_ledger_comes_back_from_json(ledger: Ledger) -> None:
    written = json.loads(json.dumps(ledger.as_json()))
    assert Ledger.from_json(written).as_json() == ledger.as_json()


@settings(max_examples=30)
@given(ledgers(), ledgers(), ledgers())
def test_ledgers_add_up_in_any_order(first: Ledger, second: Ledger, third: Ledger) -> None:
    expected = flat(first)
    for ledger in (second, third):
        for name, value in flat(ledger).items():
            expected[name] = expected.get(name, 0) + value
    sums = []
    for order in ((first, second, third), (third, first, second)):
        total = Ledger()
        for ledger in order:
            total.add(Ledger.from_json(ledger.as_json()))
        sums.append(flat(total))
    assert sums[0] == sums[1] == expected


def test_an_empty_ledger_names_every_count_as_zero() -> None:
    counts = Ledger().as_json()["counts"]
    assert set(counts) == {*PER_MODEL, *TOTALS}
    assert all(counts[name] == dict.fromkeys(MODELS, 0) for name in PER_MODEL)
    assert all(counts[name] == 0 for name in TOTALS)


def test_adding_leaves_the_other_ledger_alone() -> None:
    total, part = Ledger(), Ledger()
    part.totals["merges"] = 2
    part.per_model["image_forward_calls"]["merged"] = 3
    before = part.as_json()
    total.add(part)
    total.add(part)
    assert part.as_json() == before
    assert total.as_json()["counts"]["merges"] == 4


def test_ledgers_share_no_counters() -> None:
    first, second = Ledger(), Ledger()
    first.per_model["image_forward_calls"]["expert"] += 1
    first.totals["samples"] += 1
    assert second.as_json() == Ledger().as_json()


def test_a_phase_takes_the_time_of_what_it_encloses_even_when_that_fails() -> None:
    ledger = Ledger()
    with ledger.phase("read"):
        time.sleep(0.02)
    with pytest.raises(TimeoutError), ledger.phase("read"):
        fail_slowly()
    assert 0.04 <= ledger.as_json()["seconds"]["read"] < 5


def fail_slowly() -> None:
    time.sleep(0.02)
    raise TimeoutError


def test_of_several_micro_batches_the_smallest_is_kept_and_a_whole_tile_is_none() -> None:
    assert "micro_batch" not in Ledger().as_json()
    total = Ledger()
    for size, kept in ((None, None), (16, 16), (4, 4), (None, 4), (8, 4)):
        total.add(Ledger.from_json(Ledger(micro_batch=size).as_json()))
        assert total.as_json().get("micro_batch") == kept
