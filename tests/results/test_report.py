import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import RunDirectoryError
from pipeline.results.report import export_tables, write_report
from pipeline.store.files import write_json
from pipeline.store.tables import read_metadata

from .html_page import Page
from .run_factory import FakeSet, minimal_run, predicted_part, settings_of, study_run

HOSTILE = "<script>alert(1)</script>"
BROWSER = Path("/usr/bin/chromium-headless-shell")
CELLS = ["basophil", "eosinophil", "monocyte"]
SETS = [
    FakeSet("bloodmnist", "in-domain", CELLS, 400, 0.12),
    FakeSet("bloodmnist-gaussian-noise-severity-3", "noise", CELLS, 300, 0.55),
    FakeSet("night-archive", "unlabelled", ["normal", "pneumonia"], 100, labelled=False),
]
SMALL_SETS = [
    FakeSet("inside", "in-domain", ["a", "b", "c"], 120, 0.12),
    FakeSet("outside", "base-to-novel", ["a", "b", "c"], 100, 0.38),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_run(tmp_path_factory.mktemp("study") / "run", sets=SETS)


@pytest.fixture(scope="module")
def html(study: Path) -> str:
    path = write_report(study)
    assert path == study / "report" / "index.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one study and one of another."""
    root = tmp_path_factory.mktemp("several")
    runs = [study_run(root / name, seed=7, sets=SMALL_SETS) for name in ("first", "second", "other")]
    for run, name, seed in zip(runs, ("cells", "cells", "retina"), (0, 1, 0), strict=True):
        run_json = json.loads((run / "run.json").read_text(encoding="utf-8"))
        run_json["manifest"] |= {"name": name, "seeds": {"training": seed}}
        write_json(run / "run.json", run_json)
    return runs


def test_page_parses_and_opens_with_the_answer(html: str) -> None:
    text = Page(html).words
    answer = re.search(r"(\S+) has the best mean accuracy, [\d.]+ % over 2 evaluation sets", text)
    assert answer
    assert "Against the expert" in text[answer.start() : text.index("Contents")]
    assert text.index("What not to conclude") < text.index("Which method is right most often")


def test_page_needs_nothing_from_outside(html: str) -> None:
    assert "http:" not in html
    assert "https:" not in html
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data"):
            allowed = (
                ("#", "data:,", "data:image/png", "data/") if tag in {"a", "img", "link", "use"} else ("#", "data:,")
            )
            assert (attributes.get(name) or "#").startswith(allowed)
    assert not re.search(r"url\((?!#|data:image)|@import", html)


def test_ids_are_unique_and_links_point_to_them(html: str) -> None:
    page = Page(html)
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert max(ids.values()) == 1
    targets = {str(attributes["href"]) for attributes in page.found("a")}
    chapters = ("answer", "words", "methods", "conditions", "tests", "sets", "costs", "reading", "provenance")
    assert {f"#{name}" for name in chapters} <= targets
    assert all(target[1:] in ids for target in targets if target.startswith("#"))


def test_every_table_and_figure_is_described_and_has_its_data_beside_the_page(study: Path, html: str) -> None:
    page = Page(html)
    images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(images) == len(page.found("figure")) > 0
    assert all(len(image["aria-label"] or "") > 40 for image in images)
    regions = [attributes for _, attributes in page.tags if attributes.get("role") == "region"]
    assert len(regions) == len(page.found("table"))
    assert all(region["aria-label"] and region["tabindex"] == "0" for region in regions)
    linked = {str(link["href"]) for link in page.found("a") if str(link["href"]).startswith("data/")}
    files = {f"data/{path.name}" for path in (study / "report" / "data").iterdir()}
    assert linked == files
    assert len(files) >= len(page.found("figure"))


def test_data_beside_the_page_is_what_the_page_shows(study: Path, html: str) -> None:
    frame = pl.read_parquet(study / "report" / "data" / "methods.parquet")
    summary = pl.read_parquet(study / "summary.parquet")
    assert frame["accuracy"].to_list() == summary["accuracy"].to_list()
    shown = re.findall(r'data-value="([\d.]+)"', html[html.index('id="table-methods"') :])
    assert float(shown[0]) == frame["accuracy"][0]
    metadata = read_metadata(study / "report" / "data" / "methods.parquet")
    assert metadata is not None
    assert metadata.fingerprint


def test_report_is_byte_identical_when_written_again(study: Path, html: str) -> None:
    before = {path.name: path.read_bytes() for path in (study / "report" / "data").iterdir()}
    assert write_report(study).read_text(encoding="utf-8") == html
    assert {path.name: path.read_bytes() for path in (study / "report" / "data").iterdir()} == before


def test_ledger_and_provenance_are_on_the_page(html: str) -> None:
    text = Page(html).text
    for expected in ("2.00 B", "1.00 B", "3.00 B", "3f" * 32, "avx512", "20250101", '"gamma": 0.5'):
        assert expected in text


def test_a_method_with_one_answer_for_all_images_is_marked(html: str) -> None:
    text = Page(html).words
    assert "One class for all images: expert on bloodmnist-gaussian-noise-severity-3." in text
    assert 'href="#mark-majority-collapse"' in html


def test_the_table_of_a_single_set_keeps_its_name_and_its_marks(tmp_path: Path) -> None:
    run = study_run(tmp_path / "run", sets=SMALL_SETS[:1])
    write_json(run / "checks.json", {"evaluation_sets": {"inside": {"marks": ["leak"]}}})
    html = write_report(run).read_text(encoding="utf-8")
    heading = re.search(r'id="table-set-[^"]*inside">\s*<h3>inside(.*?)</h3>', html)
    assert heading
    assert "†" in heading[1]
    assert "† Images seen in training: inside." in Page(html).words


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
    assert HOSTILE not in html
    assert HOSTILE in page.text
    assert "set & <b>" in page.text


def test_a_bare_run_reports_what_is_absent(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"pbc": None, "oct": None}, ["t3", "dawin"])
    predicted_part(run, "t3", "pbc", 0, [0, 1], [0, 1], [None, None])
    text = Page(write_report(run).read_text(encoding="utf-8")).words
    assert "No evaluation set has labels" in text
    assert "not scored yet: evaluation set oct, method dawin" in text


def test_a_method_that_looks_at_labels_is_marked_and_never_the_best(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"pbc": None}, ["generalist", "soup", "oracle"])
    true = [0, 0, 1, 1]
    for method, predicted in {"generalist": [0] * 4, "soup@0000000a": [0, 0, 0, 1], "oracle": true}.items():
        predicted_part(run, method, "pbc", 0, range(4), predicted, true)
    settings_of(run, "soup@0000000a", alpha=0.4)
    html = write_report(run).read_text(encoding="utf-8")
    assert "soup (alpha=0.4) has the best mean accuracy, 75.00 %" in Page(html).words
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", html, re.DOTALL)
    oracle = [row for row in rows if row.startswith("oracle") and "digest" not in row]
    assert oracle
    assert all("looks at labels" in row and "<b>" not in row for row in oracle)
    assert any("<b>" in row for row in rows if row.startswith("soup (alpha=0.4)"))


def test_a_run_without_predictions_writes_no_report(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"pbc": None}, ["t3"])
    with pytest.raises(RunDirectoryError, match="run `pipeline infer` first"):
        write_report(run)
    assert not (run / "report").exists()


def test_several_runs_make_one_page_with_seeds_averaged(seeds: list[Path]) -> None:
    path = write_report(*seeds)
    assert path == seeds[0].parent / "report" / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert "over 4 evaluation sets" in page.words
    assert "cells: inside" in page.words
    assert "Means over 2 training seeds, ± standard deviation" in page.words
    assert {"cells, training seed 0", "cells, training seed 1", "retina, training seed 0"} <= set(
        re.findall(r"\w+, training seed \d", page.text)
    )
    frame = pl.read_parquet(path.parent / "data" / "set-cells-inside.parquet")
    single = [
        pl.read_parquet(run / "metrics.parquet").filter(pl.col("evaluation_set") == "inside") for run in seeds[:2]
    ]
    means = (single[0]["accuracy"] + single[1]["accuracy"]) / 2
    assert frame["accuracy"].to_list() == pytest.approx(means.to_list())


def test_tables_are_exported_in_every_format_beside_each_other(seeds: list[Path], tmp_path: Path) -> None:
    written = {kind: export_tables(*seeds, kind=kind, output=tmp_path) for kind in ("latex", "csv", "json")}  # type: ignore[arg-type]
    names = {kind: {path.stem for path in paths} for kind, paths in written.items()}
    assert names["latex"] == names["csv"] == names["json"] >= {"methods", "conditions", "set-cells-inside", "cost"}
    assert {path.suffix for path in written["latex"]} == {".tex"}
    assert all(path.parent == tmp_path / "tables" for paths in written.values() for path in paths)
    frame = pl.read_csv(tmp_path / "tables" / "methods.csv")
    parsed = json.loads((tmp_path / "tables" / "methods.json").read_text(encoding="utf-8"))
    assert frame["accuracy"].to_list() == [row["accuracy"] for row in parsed["rows"]]
    assert not (tmp_path / "index.html").exists()


def test_command_prints_the_paths_it_wrote(seeds: list[Path], tmp_path: Path) -> None:
    done = run_report(str(seeds[2]), "--output", str(tmp_path), "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "tables" / "methods.csv") in done.stdout.split()


def test_a_run_named_twice_is_refused_in_one_line(seeds: list[Path]) -> None:
    with pytest.raises(RunDirectoryError, match="named twice") as refused:
        write_report(seeds[0], seeds[0])
    assert "\n" not in str(refused.value)


def run_report(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", "report", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_browser_shows_the_page_without_error_request_or_overflow(study: Path, html: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not BROWSER.exists():
        pytest.skip(f"no headless Chromium at {BROWSER}")
    messages: list[str] = []
    requests: list[str] = []
    page_url = (study / "report" / "index.html").as_uri()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(BROWSER), args=["--no-sandbox"])
        for width, height, scheme in ((390, 844, "light"), (1280, 900, "dark")):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            page.on("console", lambda message: messages.append(message.text))
            page.on("pageerror", lambda error: messages.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(page_url)
            root = "document.documentElement"
            assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
            assert page.evaluate(f"getComputedStyle({root}).colorScheme") == "light dark"
            context.close()
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.goto(page_url)
        head = page.locator("#table-methods table").first.locator("th", has_text="Accuracy")
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        cells = page.locator("#table-methods table").first.locator("tbody tr td:nth-child(2)")
        values = [float(value) for value in cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")]
        assert values == sorted(values, reverse=True)
        browser.close()
    assert messages == []
    assert set(requests) - {"data:,"} == {page_url}
