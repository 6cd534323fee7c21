import re
from dataclasses import replace
from typing import Any

import pytest

from pipeline.results.marks import Overlap
from pipeline.results.report.answer import find_answer
from pipeline.results.report.results import Results
from pipeline.results.report.spending import spending
from pipeline.results.report.verdicts import Difference, Verdict, per_set_verdicts

from .results_factory import comparison_row, make_results, method_row, set_row
from .run_factory import totals

BETTER, WORSE, UNCLEAR = (0.04, 0.02, 0.06), (-0.04, -0.06, -0.02), (0.01, -0.01, 0.03)


def words(results: Results) -> str:
    answer = find_answer(results, spending([{"manifest": {"name": "study"}}]))
    return " ".join(
        [answer.headline, *answer.warnings, *(line for passage in answer.passages for line in passage.statements)]
    )


def plain(*others: dict[str, object]) -> Results:
    methods = [method_row("generalist", 0.80, difference_expert=WORSE), *others]
    return make_results(methods, [set_row("a", str(row["method"]), 0.9) for row in methods])


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict"),
    [
        (0.001, 0.2, 0.049, Verdict.BETTER),
        (-0.2, -0.001, 0.049, Verdict.WORSE),
        (0.001, 0.2, 0.05, Verdict.UNCONFIRMED),
        (-0.109, -0.0128, 1.0, Verdict.UNCONFIRMED),
        (0.001, 0.2, None, Verdict.UNTESTED),
        (0.0, 0.2, 0.01, Verdict.UNCLEAR),
        (-0.2, 0.0, 0.01, Verdict.UNCLEAR),
        (None, None, 0.01, Verdict.UNKNOWN),
    ],
)
def test_only_an_interval_without_zero_that_the_test_confirms_is_a_clear_difference(
    low: float | None, high: float | None, p: float | None, verdict: Verdict
) -> None:
    assert Difference(0.1, low, high, p).verdict is verdict


def test_best_method_is_compared_with_both_models() -> None:
    results = plain(
        method_row("expert", 0.83, difference_generalist=BETTER),
        method_row("t3-batch", 0.84, difference_generalist=BETTER, difference_expert=UNCLEAR),
    )
    text = words(results)
    assert "t3-batch has the best mean accuracy, 84.00 % over 2 evaluation sets." in text
    sure = "4.00 points above the generalist (95 % interval excludes 0) and not clearly different from the expert."
    assert f"It is {sure}" in text
    assert "clearly better than the generalist" not in text
    assert "t3-batch against the expert: +1.00 points, 95 % interval −1.00 to +3.00. The interval includes 0" in text


def test_an_expert_that_nothing_beats_is_the_answer_and_the_best_merge_is_named() -> None:
    results = plain(
        method_row("expert", 0.9, difference_generalist=BETTER),
        method_row("ties", 0.9, difference_generalist=BETTER, difference_expert=(0.0, -0.01, 0.01)),
    )
    answer = find_answer(results, [])
    assert answer.method == "expert"
    assert answer.headline.startswith("The expert alone has the best mean accuracy, 90.00 %")
    merge = next(figure for figure in answer.figures if figure.title == "Best merging method")
    assert (merge.value, merge.remark) == ("90.00 %", "ties, +0.00 points")


def test_a_generalist_that_nothing_beats_is_said_plainly() -> None:
    results = plain(method_row("t3", 0.7, difference_generalist=WORSE))
    assert "No method has a better mean than the generalist: 80.00 % accuracy over 2 evaluation" in words(results)


def test_methods_that_look_at_labels_are_never_the_answer() -> None:
    results = plain(method_row("oracle", 0.99, analysis_only=True), method_row("soup", 0.85))
    assert find_answer(results, []).method == "soup"


def test_without_labels_there_is_no_answer() -> None:
    results = make_results([method_row("t3", 0.0) | {"accuracy": None}], [set_row("a", "t3", 0.0, samples=0)])
    answer = find_answer(results, [])
    assert answer.method is None
    assert "No evaluation set has labels" in answer.headline
    assert answer.passages == ()


def test_wins_and_losses_of_t3_are_counted_set_by_set() -> None:
    verdicts = {"a": (BETTER, BETTER), "b": (BETTER, WORSE), "c": (WORSE, WORSE), "d": (BETTER, UNCLEAR)}
    sets = [
        set_row(name, "t3", 0.8, difference_generalist=generalist, difference_expert=expert)
        for name, (generalist, expert) in verdicts.items()
    ]
    text = words(make_results([method_row("t3", 0.8)], sets))
    assert "t3 wins, clearly better than both generalist and expert, on 1 of 4 evaluation sets (a)." in text
    losses = "to the expert on 2 of 4 evaluation sets (b, c), to the generalist on 1 of 4 evaluation sets (c)."
    assert f"t3 loses clearly {losses}" in text
    assert "t3 neither wins nor loses clearly on 1 of 4 evaluation sets (d)." in text


@pytest.mark.parametrize(
    ("second", "p", "verdict"),
    [
        (BETTER, 0.001, Verdict.BETTER),
        (BETTER, 0.2, Verdict.UNCONFIRMED),
        (UNCLEAR, 0.5, Verdict.UNCLEAR),
        (WORSE, 0.001, Verdict.UNCLEAR),
    ],
)
def test_all_seeds_must_be_clear_in_the_same_direction(second: Any, p: float, verdict: Verdict) -> None:
    results = make_results(
        [method_row("dawin", 0.8)],
        [set_row("a", "dawin", 0.8)],
        [
            comparison_row("a", "dawin", "t3", BETTER),
            comparison_row("a", "dawin", "t3", second, seed=1, p_adjusted=p),
        ],
    )
    assert per_set_verdicts(results, "dawin", "t3") == {"a": verdict}


def test_an_interval_that_the_test_does_not_confirm_is_neither_won_nor_lost() -> None:
    barely = (0.04, 0.001, 0.079)
    sets = [
        set_row("a", "t3", 0.8, difference_generalist=BETTER, difference_expert=BETTER),
        set_row("b", "t3", 0.8, difference_generalist=barely, difference_expert=BETTER),
    ]
    text = words(make_results([method_row("t3", 0.8)], sets))
    assert "t3 wins, clearly better than both generalist and expert, on 1 of 2 evaluation sets (a)." in text
    assert "an interval excludes 0 but no test confirms it on 1 of 2 evaluation sets (b)." in text
    assert "gives p < 0.05." in text


def test_rescaled_mapping_and_other_rules_are_compared_with_t3() -> None:
    rescaled = method_row("t3@0a", 0.85) | {"label": "t3 (mapping=rescaled)"}
    methods = [method_row("t3", 0.8), rescaled, method_row("dawin", 0.82), method_row("soup", 0.99)]
    sets = [set_row(name, str(row["method"]), 0.8) for name in ("a", "b") for row in methods]
    comparisons = [comparison_row("a", "t3@0a", "t3", BETTER), comparison_row("b", "t3@0a", "t3", WORSE)]
    text = words(make_results(methods, sets, comparisons))
    assert (
        "t3 (mapping=rescaled): +5.00 points on the mean against t3; clearly better on 1, clearly worse on 1 of 2 "
        "evaluation sets."
    ) in text
    assert "Of the other rules, the best by mean accuracy is dawin: +2.00 points" in text
    assert "was not run" in words(plain(method_row("t3", 0.8)))


def test_what_must_not_be_concluded_is_said() -> None:
    sets = [
        set_row("seen", "generalist", 0.9, marks=["leak"]),
        set_row("seen", "t3", 0.7, marks=["leak", "majority-collapse"]),
        set_row("seen", "expert", 0.95, marks=["leak"]),
        set_row("small", "generalist", 0.9, clusters=50),
        set_row("small", "t3", 0.99, clusters=50),
        set_row("small", "expert", 0.8, clusters=50),
    ]
    methods = [method_row("generalist", 0.9), method_row("expert", 0.92), method_row("t3", 0.95)]
    text = words(make_results(methods, sets, unchecked=("study",)))
    assert "largest of 3 means" in text
    assert "In-domain the expert alone is at least as good on 1 of 2 evaluation sets (seen)." in text
    assert "† Images seen in training: seen." in text
    assert re.search(r"t3 on seen\. The method answers one class", text)
    assert "small has 50 independent images: each is worth 2.00 points" in text
    assert "was not checked (study): run `pipeline check`" in text
    assert "One training seed" in text
    checked = words(make_results(methods, sets, seeds={"study": (0, 1, 2)}))
    assert "One training seed" not in checked
    assert "was not checked" not in checked


def test_costs_are_summed_over_runs() -> None:
    run = {
        "manifest": {"name": "study", "methods": ["t3"]},
        "ledger": {
            "precompute": totals({"generalist": 4, "expert": 4}, 128, 0, 0, 0, 1.0),
            "infer": {"t3": totals({"merged": 8}, 128, 4, 0, 4, 2.0)},
        },
    }
    stage_one, t3 = spending([run, run])
    assert (stage_one.method, stage_one.calls, stage_one.samples, stage_one.per_image) == (None, 16, 256, 2.0)
    assert (t3.calls, t3.unit, t3.cost, t3.per_image, t3.seconds) == (16, 8, 2.0, 1.0, 4.0)


def test_sets_without_an_interval_are_neither_won_nor_lost() -> None:
    sets = [
        set_row("a", "t3", 0.8, difference_generalist=BETTER, difference_expert=BETTER),
        set_row("b", "t3", 0.8) | {"difference_generalist": 0.2, "difference_expert": 0.1},
    ]
    text = words(make_results([method_row("t3", 0.8)], sets))
    assert "t3 cannot be compared with generalist and expert on 1 evaluation set: there is no interval" in text
    assert "t3 wins, clearly better than both generalist and expert, on a." in text


def test_what_was_left_out_and_what_could_not_be_checked_is_said_in_full() -> None:
    left_out = tuple(f"study: set-{number} (no such file)" for number in range(9))
    unknown = ("study: what generalist was trained on: published weights",)
    results = replace(plain(), left_out=left_out, unknown=unknown)
    text = words(results)
    assert "not known in full: study: what generalist was trained on: published weights." in text
    assert all(line in text for line in left_out)
    assert "Left out" not in words(plain())


COLLAPSED = ["majority-collapse"]


def test_collapse_of_reference_and_compared_method_is_said_by_name() -> None:
    rescaled = {"label": "t3 (mapping=rescaled)"}
    methods = [
        method_row("generalist", 0.7),
        method_row("t3", 0.8),
        method_row("soup", 0.7),
        method_row("slerp", 0.7),
        method_row("t3@0a", 0.7) | rescaled,
    ]
    marks = {"generalist": {"a", "b"}, "t3@0a": {"a", "b"}, "slerp": {"a"}}
    sets = [
        set_row(name, str(row["method"]), 0.7, marks=COLLAPSED if name in marks.get(str(row["method"]), ()) else [])
        | {"label": row["label"]}
        for name in ("a", "b")
        for row in methods
    ]
    results = make_results(methods, sets)
    text = words(results)
    assert (
        find_answer(results, [])
        .warnings[0]
        .startswith("The generalist answers one class for every image on all 2 evaluation sets: a difference to it")
    )
    assert "points on the mean against t3, without a paired test. t3 (mapping=rescaled) answers one class" in text
    assert (
        "One class for all images: generalist, t3 (mapping=rescaled) and 1 other method on a; "
        "generalist and t3 (mapping=rescaled) on b."
    ) in text
    assert "soup answers" not in text


def test_a_best_method_that_has_collapsed_is_said_to_have() -> None:
    results = make_results([method_row("soup", 0.9)], [set_row("a", "soup", 0.9, marks=COLLAPSED)])
    assert find_answer(results, []).warnings == (
        "soup answers one class for every image on a: its accuracy there is the share of that class, no matter what "
        "the images show.",
    )


def test_leaks_are_counted_and_their_models_named() -> None:
    sets = [set_row("clean", "t3", 0.9, marks=["leak"]), set_row("noisy", "t3", 0.8, marks=["leak"])]
    where = "training set breast"
    overlaps = [Overlap("leak", "clean", 1, 156, 0, where, model) for model in ("generalist", "expert")]
    overlaps.append(Overlap("leak", "noisy", 5, 780, 780, where, "expert"))
    results = make_results([method_row("t3", 0.9)], sets, overlaps=tuple(("study", item) for item in overlaps))
    answer = find_answer(results, [])
    assert answer.warnings == (
        "† Images seen in training: all 2 evaluation sets, at most 0.64 % of a set's images in any one training or "
        "validation set.",
    )
    assert (
        "† Images seen in training: clean, 1 of 156 images (training set breast of generalist and expert); noisy, "
        "5 of 780 images (training set breast of expert). Corrupted images are counted by their clean ones. "
        "The set holds images that a model was trained or validated on"
    ) in words(results)


def test_several_seeds_are_counted_and_said_to_be_outside_the_intervals() -> None:
    text = words(replace(plain(), seeds={"study": (0, 1, 2)}))
    assert "over 2 evaluation sets and 3 training seeds" in text
    assert "Their intervals are about which images were drawn, not about training" in text
    assert "1 to 3 training seeds" in words(replace(plain(), seeds={"study": (0, 1, 2), "other": (0,)}))


def test_without_references_it_is_said_that_nothing_was_compared() -> None:
    methods = [method_row("site-a", 0.8), method_row("site-b", 0.9)]
    text = words(make_results(methods, [set_row("a", str(row["method"]), 0.8) for row in methods]))
    assert "site-b has the best mean accuracy, 90.00 % over 2 evaluation sets. That was compared with no other" in text
    assert "The mean of site-b was compared with no other: comparisons are with generalist and expert" in text
    assert "That it is 10.00 points ahead of the next, site-a, may be chance." in text


def test_rescaled_batches_are_compared_with_batches() -> None:
    methods = [
        method_row("t3", 0.8),
        method_row("t3-batch", 0.85),
        method_row("t3-batch@0a", 0.86) | {"label": "t3-batch (mapping=rescaled)"},
        method_row("dawin-batch", 0.84),
    ]
    sets = [set_row("a", str(row["method"]), 0.8) for row in methods]
    comparisons = [
        comparison_row("a", "t3-batch@0a", "t3", BETTER),
        comparison_row("a", "t3-batch@0a", "t3-batch", UNCLEAR),
        comparison_row("a", "dawin-batch", "t3-batch", WORSE),
    ]
    text = words(make_results(methods, sets, comparisons))
    assert "t3-batch (mapping=rescaled): +1.00 points on the mean against t3-batch; clearly better on 0" in text
    assert "dawin-batch: −1.00 points on the mean against t3-batch; clearly better on 0, clearly worse on 1" in text
