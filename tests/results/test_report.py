import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RunDirectoryError
from pipeline.results.report import write_report
from pipeline.store.files import write_json

from .run_factory import FakeSet, minimal_run, predicted_part, settings_of, study_run, write_part

VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Checks that tags nest, and keeps tags with attributes, ids and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"script", "style"}:
            self.text += data

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_run(tmp_path_factory.mktemp("study") / "run")


@pytest.fixture(scope="module")
def html(study: Path) -> str:
    path = write_report(study)
    assert path == study / "report" / "index.html"
    return path.read_text(encoding="utf-8")


def test_page_parses_and_opens_with_the_answer(html: str) -> None:
    text = " ".join(Page(html).text.split())
    answer = re.search(r"t3-lambda has the best mean accuracy: [\d.]+ %, ([\d.]+) points above the generalist", text)
    assert answer
    assert "1.00 times the forward calls of one plain model" in text
    assert text.index(answer[0]) < text.index("Contents")


def test_page_needs_nothing_from_outside(html: str) -> None:
    assert "http:" not in html
    assert "https:" not in html
    page = Page(html)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
    assert not re.search(r"url\((?!#)|@import", html)


def test_ids_are_unique_and_contents_point_to_them(html: str) -> None:
    page = Page(html)
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert max(ids.values()) == 1
    targets = {attributes["href"] for attributes in page.found("a")}
    assert {f"#{name}" for name in ("answer", "methods", "sets", "coefficients", "cost", "provenance")} <= targets
    assert all(target and target[1:] in ids for target in targets)


def test_every_figure_and_scrolling_table_is_described(html: str) -> None:
    page = Page(html)
    images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(images) == len(page.found("figure")) == 2 * 5
    assert all("samples" in (image["aria-label"] or "") for image in images)
    regions = [attributes for _, attributes in page.tags if attributes.get("role") == "region"]
    assert len(regions) == len(page.found("table"))
    assert all("aria-label" in region or "aria-labelledby" in region for region in regions)


def test_report_is_byte_identical_when_written_again(study: Path, html: str) -> None:
    assert write_report(study).read_text(encoding="utf-8") == html


def test_ledger_and_provenance_are_on_the_page(html: str) -> None:
    text = Page(html).text
    for expected in (
        "2.00 B",
        "1.00 B",
        "3.00 B",
        "3f" * 32,
        "avx512",
        "20250101",
        '"gamma": 0.5',
        "one class on 1 set",
    ):
        assert expected in text


def test_what_users_named_is_escaped(tmp_path: Path) -> None:
    names = [HOSTILE, "b"]
    fake = FakeSet("set & <b>", f"cond {HOSTILE}".replace("/", ""), names, 64)
    run = study_run(tmp_path / "run", sets=[fake])
    run_json = json.loads((run / "run.json").read_text(encoding="utf-8"))
    run_json["manifest"]["name"] = f'"{HOSTILE}'
    run_json["versions"] = {HOSTILE: HOSTILE}
    write_json(run / "run.json", run_json)
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.found("script")) == 1
    assert not page.found("b")
    assert HOSTILE not in html
    assert HOSTILE in page.text


def test_clusters_are_explained_for_t3_at_default_settings_only(study: Path, html: str, tmp_path: Path) -> None:
    assert html.count("three clusters") == 1
    run = minimal_run(tmp_path, {"pbc": None}, ["t3@1a2b3c4d"])
    predicted_part(run, "t3@1a2b3c4d", "pbc", 0, [0, 1], [0, 1], [0, 1])
    folder = run / "coefficients" / "t3@1a2b3c4d" / "pbc" / "samples"
    write_part(folder, 0, {"lambda": np.float32([0.5, 1.0]), "branch": ["none", "expert-confident"]})
    other = write_report(run).read_text(encoding="utf-8")
    assert "Rule t3@1a2b3c4d" in other
    assert "three clusters" not in other


def test_a_bare_run_reports_what_is_absent(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"pbc": None, "oct": None}, ["t3", "dawin"])
    predicted_part(run, "t3", "pbc", 0, [0, 1], [0, 1], [None, None])
    text = " ".join(Page(write_report(run).read_text(encoding="utf-8")).text.split())
    assert "No evaluation set has labels" in text
    assert "Not scored yet: evaluation set oct, method dawin" in text
    assert "The run has no ledger." in text


def test_no_method_better_than_the_generalist_is_said_plainly(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"pbc": None}, ["generalist", "t3"])
    predicted_part(run, "generalist", "pbc", 0, [0, 1], [0, 1], [0, 1])
    predicted_part(run, "t3", "pbc", 0, [0, 1], [0, 0], [0, 1])
    assert "No method is better than the generalist" in write_report(run).read_text(encoding="utf-8")


def test_a_method_that_looks_at_labels_is_marked_and_never_the_best(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"pbc": None}, ["generalist", "soup", "oracle"])
    true = [0, 0, 1, 1]
    for method, predicted in {"generalist": [0] * 4, "soup@0000000a": [0, 0, 0, 1], "oracle": true}.items():
        predicted_part(run, method, "pbc", 0, range(4), predicted, true)
    settings_of(run, "soup@0000000a", alpha=0.4)
    html = write_report(run).read_text(encoding="utf-8")
    text = " ".join(Page(html).text.split())
    assert "soup (alpha=0.4) has the best mean accuracy: 75.00 %, 25.00 points above the generalist" in text
    best = re.findall(r'<tr class="best">(.*?)</tr>', html, re.DOTALL)
    assert best
    assert all("soup (alpha=0.4)" in row and "oracle" not in row for row in best)
    assert re.search(r"oracle\s*<span class=\"mark\">looks at labels</span>", html)
    assert not re.search(r"(soup \(alpha=0\.4\)|generalist)\s*<span class=\"mark\">looks at labels</span>", html)


def test_a_run_without_predictions_writes_no_report(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"pbc": None}, ["t3"])
    with pytest.raises(RunDirectoryError, match="run `pipeline infer` first"):
        write_report(run)
    assert not (run / "report").exists()
