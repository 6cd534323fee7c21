import pytest

from pipeline.checks.class_names import NameFinding, compare_class_names

CELLS = ["basophil", "eosinophil", "monocyte"]


def found(names: list[str], condition: str = "in-domain", **trained: list[str]) -> NameFinding:
    finding = compare_class_names(names, trained or {"cells": CELLS}, condition)
    assert finding is not None
    return finding


def test_equal_names_are_the_same_and_another_order_does_no_harm() -> None:
    assert found(CELLS).relation == "same"
    turned = found(CELLS[::-1])
    assert (turned.relation, turned.suspicious) == ("reordered", False)
    assert "no harm" in turned.explanation()


def test_some_of_the_names_are_a_subset() -> None:
    finding = found(CELLS[:2])
    assert (finding.relation, finding.absent, finding.suspicious) == ("subset", ("monocyte",), False)


@pytest.mark.parametrize(("condition", "suspicious"), [("base-to-novel", False), ("in-domain", True), ("noise", True)])
def test_novel_classes_are_expected_in_base_to_novel_only(condition: str, suspicious: bool) -> None:
    finding = found([*CELLS, "platelet"], condition)
    assert (finding.relation, finding.untrained, finding.suspicious) == ("novel", ("platelet",), suspicious)
    assert "'platelet'" in finding.explanation()
    assert ("as base-to-novel sets do" in finding.explanation()) is not suspicious


@pytest.mark.parametrize("name", ["Monocyte", "monocytes", " monocyte ", "monocyt"])
@pytest.mark.parametrize("condition", ["in-domain", "base-to-novel"])
def test_almost_equal_spellings_are_named_in_pairs_under_every_condition(name: str, condition: str) -> None:
    finding = found([*CELLS[:2], name], condition)
    assert finding.almost == ((name, "monocyte"),)
    assert finding.suspicious
    assert f"{name!r} here and 'monocyte' there" in finding.explanation()


def test_names_that_share_most_letters_but_are_both_trained_on_are_no_misspellings() -> None:
    grades = [f"{grade} diabetic retinopathy" for grade in ("no", "mild", "moderate", "severe")]
    assert found(grades, fundus=grades[::-1]).almost == ()
    assert found([*grades[:3], "proliferative diabetic retinopathy"], fundus=grades).almost == ()


def test_a_misspelt_and_a_novel_name_are_both_told() -> None:
    said = found(["basophils", "eosinophil", "platelet"]).explanation()
    assert "'basophils' here and 'basophil' there" in said
    assert "names classes beyond" in said
    assert "'platelet'" in said


def test_the_nearest_training_set_is_what_names_are_compared_with() -> None:
    finding = found(["malignant", "benign"], breast=["benign", "malignant"], cells=CELLS)
    assert (finding.training_set, finding.relation) == ("breast", "reordered")
    assert found(["monocytes", "platelets"], breast=["benign", "malignant"], cells=CELLS).training_set == "cells"


def test_nothing_is_said_where_no_training_is_known() -> None:
    assert compare_class_names(CELLS, {}, "in-domain") is None


def test_a_training_set_without_names_says_nothing() -> None:
    assert compare_class_names(CELLS, {"unnamed": []}, "in-domain") is None
    assert found(["monocytes"], unnamed=[], cells=CELLS).training_set == "cells"
