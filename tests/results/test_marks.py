import json
from pathlib import Path

import pytest

from pipeline.errors import RunDirectoryError
from pipeline.results.marks import MARKS, Overlap, read_marks, read_overlaps, read_unknown, sort_codes


def test_every_mark_has_a_symbol_of_its_own_and_says_what_it_means() -> None:
    assert list(MARKS) == ["leak", "near-duplicates", "duplicates-within", "class-names", "majority-collapse"]
    assert len({mark.symbol for mark in MARKS.values()}) == len(MARKS)
    assert all(mark.title and mark.explanation.endswith(".") for mark in MARKS.values())


def test_codes_come_in_the_order_of_the_table_each_once() -> None:
    assert sort_codes(["class-names", "unheard-of", "leak", "class-names"]) == ["leak", "class-names", "unheard-of"]


def test_a_run_that_was_not_checked_has_no_marks(tmp_path: Path) -> None:
    assert read_marks(tmp_path) == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"evaluation_sets": {"a": {}}}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "checks.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=r"checks.json: is damaged .*run `pipeline check` again"):
        read_marks(tmp_path)


def test_what_could_not_be_checked_is_read_as_sentences(tmp_path: Path) -> None:
    assert read_unknown(tmp_path) == []
    found = {
        "evaluation_sets": {},
        "unknown": [{"model": "generalist", "reason": "published weights"}],
        "not_checked": {"night": "run `pipeline ingest`"},
    }
    (tmp_path / "checks.json").write_text(json.dumps(found))
    assert read_unknown(tmp_path) == [
        "what generalist was trained on: published weights",
        "evaluation set night: run `pipeline ingest`",
    ]


def test_counts_are_read_for_every_mark_model_and_set(tmp_path: Path) -> None:
    training = [
        {"model": "expert", "set": "breast", "role": "training", "exact": 1, "near": 45},
        {"model": "expert", "set": "breast", "role": "validation", "exact": 0, "near": 0},
    ]
    within = {"exact": 2, "near": 1}
    entry = {"marks": ["leak"], "images": 156, "through_base": 0, "training": training, "within": within}
    (tmp_path / "checks.json").write_text(json.dumps({"evaluation_sets": {"a": entry, "b": {"marks": []}}}))
    assert read_overlaps(tmp_path) == [
        Overlap("leak", "a", 1, 156, 0, "training set breast", "expert"),
        Overlap("near-duplicates", "a", 45, 156, 0, "training set breast", "expert"),
        Overlap("duplicates-within", "a", 2, 156, 0),
    ]
    assert read_overlaps(tmp_path / "nowhere") == []
