"""Methods that look at labels, rules of the user's own and streams: they are for analysis, and never the answer."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline.drivers.infer import infer
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest
from pipeline.results.metrics import evaluate_run
from pipeline.results.report import write_report
from pipeline.results.report.results import best_method
from pipeline.results.summary import summary_records
from pipeline.results.tables import results_table
from pipeline.stages.selection import select_methods
from tests.main_job.factory import copy_run, matrix, read_answers, read_evidence

BEST = """
import numpy as np


def best(evidence):
    if evidence.labels is None:
        return np.full(len(evidence), 0.5)
    right = evidence.logits_generalist.argmax(axis=1) == evidence.labels
    return np.where(right, 0.0, 1.0)
"""
STREAMS = {"temporal": True, "dirichlet(0.5)": True, "iid": False}


@pytest.fixture(scope="module")
def labelled(
    finished: Manifest, pair: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Manifest, dict[str, str]]]:
    """A run of methods that look at labels, and of their likes that do not; the keys of its methods."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "looking.py").write_text(BEST)
    streams = [{"name": "t3-batch", "order": order} for order in STREAMS]
    own = [{"name": "looking:best", "labels": labels} for labels in ("hidden", "given")]
    methods = ["generalist", "expert", *streams, *own]
    manifest = copy_run(finished, folder, pair, methods=methods)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        infer(manifest, LocalEngine(manifest), allow_code=True)
        names = ["generalist", "expert", *STREAMS, "hidden", "given"]
        yield manifest, {name: item.key for name, item in zip(names, select_methods(manifest), strict=True)}


def test_a_rule_sees_labels_only_where_its_entry_says_so(labelled: tuple[Manifest, dict[str, str]]) -> None:
    manifest, keys = labelled
    evidence = read_evidence(manifest)
    right = matrix(evidence, "logits_generalist").argmax(axis=1) == evidence["label"].to_numpy()
    assert 0 < right.sum() < len(right)
    assert set(read_answers(manifest, keys["hidden"])["lambda"].to_pylist()) == {0.5}
    np.testing.assert_array_equal(read_answers(manifest, keys["given"])["lambda"].to_numpy(), np.where(right, 0.0, 1.0))


def test_what_looks_at_labels_is_for_analysis_only(labelled: tuple[Manifest, dict[str, str]]) -> None:
    manifest, keys = labelled
    evaluate_run(Path(manifest.output))
    table = pq.read_table(Path(manifest.output) / "metrics.parquet")
    found = dict(zip(table["method"].to_pylist(), table["analysis_only"].to_pylist(), strict=True))
    expected = {"generalist": False, "expert": False, **STREAMS, "hidden": False, "given": True}
    assert {name: found[key] for name, key in keys.items()} == expected


def answer_of(frame: pl.DataFrame) -> str:
    """The method that the report would name, of metrics without intervals."""
    best = best_method(pl.DataFrame(summary_records(frame, {})))
    assert best is not None
    return best


def test_a_rule_that_knows_the_answers_has_the_best_accuracy_and_is_neither_the_answer_nor_bold(
    labelled: tuple[Manifest, dict[str, str]],
) -> None:
    manifest, keys = labelled
    frame = evaluate_run(Path(manifest.output))
    frame = frame.filter(pl.col("method").is_in(keys.values()))
    best = frame.filter(pl.col("accuracy") == pl.col("accuracy").max())["method"].to_list()
    assert best == [keys["given"]], "else the rest says nothing"
    answer = answer_of(frame)
    assert answer in {keys[name] for name in ("generalist", "expert", "iid", "hidden")}
    names, accuracies = (list(column.cells) for column in results_table(frame).columns[1:3])
    styles = dict(zip(frame["method"].to_list(), (cell.style for cell in accuracies), strict=True))  # type: ignore[union-attr]
    assert len(names) == len(frame)
    assert {name for name, key in keys.items() if styles[key] == "dim"} == {"temporal", "dirichlet(0.5)", "given"}
    assert styles[answer] == "bold"


def test_the_best_stream_made_from_labels_is_not_the_answer_but_a_shuffled_one_can_be(
    labelled: tuple[Manifest, dict[str, str]],
) -> None:
    manifest, keys = labelled
    frame = evaluate_run(Path(manifest.output))
    for order, sees in STREAMS.items():
        perfect = pl.when(pl.col("method") == keys[order]).then(1.0)
        answer = answer_of(frame.with_columns(perfect.otherwise("accuracy").alias("accuracy")))
        assert (answer == keys[order]) == (not sees), order


def test_the_report_crowns_no_method_that_looks_at_labels(labelled: tuple[Manifest, dict[str, str]]) -> None:
    manifest, _ = labelled
    html = write_report(Path(manifest.output)).read_text(encoding="utf-8")
    rows = [row for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL) if "<b>" in row]
    assert rows
    assert all("looks at labels" not in row for row in rows)
    marked = re.findall(r'([^<>]+?)\s*<span class="mark">looks at labels</span>', html)
    assert {name.strip().removeprefix("infer, ") for name in marked} == {
        "looking.best (labels=given)",
        "t3-batch (order=temporal)",
        "t3-batch (order=dirichlet(0.5))",
    }
