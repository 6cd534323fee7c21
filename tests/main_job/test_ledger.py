"""The ledger proves what each method costs: O(1B) cached, O(3B) online, O(N) per sample; and how a run is looked at."""

import json
from itertools import groupby
from pathlib import Path

import pytest

from pipeline.archives.archive import Archive
from pipeline.drivers.ingest import ingest
from pipeline.drivers.summary import Summary
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    MANIFEST,
    copy_run,
    read_batches,
    result_files,
    run_infer,
    run_precompute,
    study,
)

IMAGES, BATCHES = 256, 8
TILES = [{"name": "whole", "source": {"kind": "synthetic", "count": IMAGES, "seed": 8}}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pair: Path) -> Manifest:
    """Evidence for 256 images in 8 batches of one tile each. Not to be written to."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = study(folder, pair, folder / "archives", evaluation_sets=TILES)
    ingest(manifest, LocalEngine(manifest))
    summary = run_precompute(manifest)
    assert _image_calls(summary) == {"generalist": BATCHES, "expert": BATCHES, "merged": 0}
    assert _image_counts(summary) == {"generalist": IMAGES, "expert": IMAGES, "merged": 0}
    assert summary.ledger.totals["images_read"] == IMAGES
    return manifest


def _image_calls(summary: Summary) -> dict[str, int]:
    calls: dict[str, int] = summary.as_json()["ledger"]["counts"]["image_forward_calls"]
    return calls


def _image_counts(summary: Summary) -> dict[str, int]:
    images: dict[str, int] = summary.as_json()["ledger"]["counts"]["image_forward_images"]
    return images


def _forwards(summary: Summary) -> int:
    counts = summary.as_json()["ledger"]["counts"]
    return sum(counts["image_forward_calls"].values()) + sum(counts["text_forward_calls"].values())


@pytest.mark.parametrize("method", ["t3-batch", "t3-lambda"])
def test_a_batch_costs_one_forward_with_the_cache(whole: Manifest, pair: Path, tmp_path: Path, method: str) -> None:
    manifest = copy_run(whole, tmp_path, pair, evaluation_sets=TILES)
    summary = run_infer(manifest, method)
    totals = summary.ledger.totals
    assert _image_calls(summary) == {"generalist": 0, "expert": 0, "merged": BATCHES}
    assert _image_counts(summary)["merged"] == IMAGES
    assert totals["batches"] == totals["merges"] + totals["merges_skipped"] == BATCHES
    assert (totals["images_read"], totals["samples"], totals["rejected"]) == (IMAGES, IMAGES, 0)
    assert sum(summary.ledger.per_model["text_forward_calls"].values()) == 0


@pytest.mark.parametrize("method", ["t3-batch", "t3-lambda"])
def test_a_batch_costs_three_forwards_online(whole: Manifest, pair: Path, tmp_path: Path, method: str) -> None:
    manifest = study(tmp_path, pair, Path(whole.archives), evaluation_sets=TILES)
    summary = run_infer(manifest, method, online=True)
    assert _image_calls(summary) == dict.fromkeys(("generalist", "expert", "merged"), BATCHES)
    assert _image_counts(summary) == dict.fromkeys(("generalist", "expert", "merged"), IMAGES)
    totals = summary.ledger.totals
    assert totals["batches"] == totals["merges"] + totals["merges_skipped"] == BATCHES
    assert (totals["images_read"], totals["samples"]) == (2 * IMAGES, IMAGES)


def test_a_lambda_for_every_image_costs_two_forwards_per_tile_and_no_merge(
    whole: Manifest, pair: Path, tmp_path: Path
) -> None:
    manifest = copy_run(whole, tmp_path, pair, evaluation_sets=TILES)
    summary = run_infer(manifest, "t3")
    assert _image_calls(summary) == {"generalist": 0, "expert": 0, "merged": 0, "per-sample": 2 * BATCHES}
    assert _image_counts(summary)["per-sample"] == 2 * IMAGES
    totals = summary.ledger.totals
    assert (totals["merges"], totals["merges_skipped"], totals["samples"]) == (0, IMAGES, IMAGES)


def test_the_merge_loop_costs_a_forward_per_image_and_a_merge_per_change_of_lambda(
    whole: Manifest, pair: Path, tmp_path: Path
) -> None:
    manifest = copy_run(whole, tmp_path, pair, evaluation_sets=TILES, compute={"per_sample": "merge-loop"})
    summary = run_infer(manifest, "t3")
    plan = read_batches(manifest, "sample", "whole")
    assert plan["size"].to_pylist() == [1] * IMAGES
    coefficients = plan["lambda"].to_pylist()
    assert coefficients == sorted(coefficients)
    changes = [lam for lam, _ in groupby(coefficients) if lam not in {0.0, 1.0}]
    assert 100 < len(changes) < IMAGES
    assert _image_calls(summary) == {"generalist": 0, "expert": 0, "merged": IMAGES}
    assert summary.ledger.totals["merges"] == len(changes)
    assert summary.ledger.totals["merges_skipped"] == IMAGES - len(changes)


def test_the_papers_own_way_costs_three_forwards_of_one_image_and_a_merge_for_each(
    whole: Manifest, pair: Path, tmp_path: Path
) -> None:
    literal = {"tile": 1, "per_sample": "merge-loop"}
    manifest = study(tmp_path, pair, Path(whole.archives), evaluation_sets=TILES, compute=literal)
    summary = run_infer(manifest, "t3", online=True)
    assert _image_calls(summary) == dict.fromkeys(("generalist", "expert", "merged"), IMAGES)
    assert _image_counts(summary) == dict.fromkeys(("generalist", "expert", "merged"), IMAGES)
    totals = summary.ledger.totals
    assert totals["merges"] + totals["merges_skipped"] == totals["samples"] == IMAGES
    assert totals["merges"] > 100


def test_a_repeated_command_computes_nothing(finished: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = copy_run(finished, tmp_path, pair)
    before = result_files(Path(manifest.output))
    for summary, skipped in ((run_precompute(manifest), 5), (run_infer(manifest), 25)):
        assert (summary.computed, summary.skipped) == (0, skipped)
        assert summary.samples == 0
        assert _forwards(summary) == 0
        assert summary.ledger.totals["images_read"] == 0
    assert result_files(Path(manifest.output)) == before


def test_the_plain_models_are_read_from_evidence(whole: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = copy_run(whole, tmp_path, pair, evaluation_sets=TILES)
    summary = run_infer(manifest, "generalist", "expert")
    assert (summary.computed, summary.skipped) == (4, 0)
    assert _forwards(summary) == 0
    assert summary.ledger.totals["images_read"] == 0


def test_the_runs_totals_outlive_the_invocation_that_made_them(whole: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = copy_run(whole, tmp_path, pair, evaluation_sets=TILES)
    run_infer(manifest, "t3-batch")
    repeated = run_infer(manifest, "t3-batch", "generalist")
    recorded = json.loads((Path(manifest.output) / "run.json").read_text())["ledger"]
    methods = [name for name in recorded["infer"] if name.startswith("t3-batch")]
    assert len(methods) == 1
    counts = recorded["infer"][methods[0]]["counts"]
    assert counts["image_forward_calls"] == {"generalist": 0, "expert": 0, "merged": BATCHES}
    assert recorded["infer"]["generalist"]["counts"]["image_forward_calls"]["generalist"] == 0
    assert recorded["precompute"]["counts"]["image_forward_calls"]["generalist"] == BATCHES
    assert repeated.totals == recorded["infer"]


@pytest.mark.parametrize(("batch_size", "calls"), [(64, 4 * 2), (16, 16), (48, 5 * 2 + 1), (100, 4 + 4 + 2)])
def test_no_batch_takes_more_forwards_than_its_tiles(
    whole: Manifest, pair: Path, tmp_path: Path, batch_size: int, calls: int
) -> None:
    manifest = copy_run(whole, tmp_path, pair, evaluation_sets=TILES, grouping={"batch_size": batch_size})
    summary = run_infer(manifest, "t3-batch")
    assert _image_calls(summary)["merged"] == calls
    assert _image_counts(summary)["merged"] == IMAGES


def test_summaries_are_json_for_programs(
    whole: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    copy_run(whole, tmp_path, pair, evaluation_sets=TILES, methods=["t3-batch"])
    path = str(tmp_path / MANIFEST)
    for command in ("ingest", "precompute", "infer"):
        code, out, _ = command_line(command, path, "--engine", "local", "--json")
        assert code == 0
        summary = json.loads(out)
        assert summary["stage"] == command
        assert set(summary) == {"stage", "run", "parts", "samples", "rejected", "ledger", "ledger_total"}
    assert summary["parts"] == {"computed": 2, "skipped": 0}
    assert summary["ledger"]["counts"]["image_forward_calls"]["merged"] == BATCHES


def test_a_run_can_be_inspected(finished: Manifest, command_line: CommandLine) -> None:
    code, text, _ = command_line("inspect", finished.output)
    assert code == 0
    assert "evidence/cells: 5 parts, 490 rows" in text
    code, out, _ = command_line("inspect", finished.output, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["kind"], found["state"], found["absent"]) == ("run", "inferred", [])
    tables = found["tables"]
    predictions = [name for name in tables if name.startswith("predictions/")]
    assert len(predictions) == 5
    for name in ["evidence/cells", *predictions]:
        assert (tables[name]["parts"], tables[name]["rows"]) == (5, 490)
        assert tables[name]["missing"] == tables[name]["unreadable"] == []
        assert len(tables[name]["fingerprint"]) == 64


def test_inspection_names_what_a_run_lacks(
    finished: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    manifest = copy_run(finished, tmp_path, pair)
    evidence = Path(manifest.output) / "evidence" / "cells"
    (evidence / "part-00001.parquet").unlink()
    torn = evidence / "part-00003.parquet"
    torn.write_bytes(torn.read_bytes()[:-20])
    _, out, _ = command_line("inspect", manifest.output, "--json")
    table = json.loads(out)["tables"]["evidence/cells"]
    assert (table["missing"], table["unreadable"]) == ([1], [3])
    _, text, _ = command_line("inspect", manifest.output)
    assert "missing 1, unreadable 3" in text


def test_an_archive_can_be_inspected(finished: Manifest, command_line: CommandLine) -> None:
    path = Path(finished.archives) / "cells"
    code, out, _ = command_line("inspect", str(path), "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["kind"], found["samples"], found["rejected"]) == ("archive", 490, 0)
    assert found["parts"] == {"written": 5, "missing": []}
    assert [segment["rows"] for segment in found["segments"]] == [400, 90]
    assert found["digests"]["part-00000"] == Archive.open(path).part_digest(0)
    code, text, _ = command_line("inspect", str(path))
    assert code == 0
    assert "490 accepted, 0 rejected" in text


def test_inspecting_anything_else_is_one_line(tmp_path: Path, command_line: CommandLine) -> None:
    code, _, err = command_line("inspect", str(tmp_path))
    assert code == 2
    assert err.splitlines() == [f"error: {tmp_path}: is neither a run (no run.json) nor an archive (no archive.json)"]
