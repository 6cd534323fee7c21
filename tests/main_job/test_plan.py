"""A plan says before the night what its ledger, its folders and its batches then are."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.drivers.ingest import ingest
from pipeline.drivers.plan import plan
from pipeline.engines.local import LocalEngine
from pipeline.errors import StaleCacheError
from pipeline.manifest import Manifest
from pipeline.models.class_embeddings import ClassHead
from pipeline.stages.heads import Heads
from pipeline.stages.selection import select_methods
from tests.main_job.factory import (
    copy_run,
    make_sources,
    predictions_folder,
    read_batches,
    run_infer,
    run_precompute,
    study,
    study_of_sources,
)
from tests.main_job.planned import EVERY_KIND, by_name, files_below, quick, stages

COUNTED = ("image_forward_calls", "image_forward_images", "text_forward_calls", "text_forward_images")
# A night that is long enough for its files to be more than their footers.
NIGHT = [{"name": "night", "source": {"kind": "synthetic", "count": 1700, "seed": 4}}]


def ledger(run: Path, *stage: str) -> Counter[str]:
    """Counts of all parts of a stage, over all sets and models."""
    total: Counter[str] = Counter()
    for path in run.joinpath("ledger", *stage).glob("*/part-*.json"):
        counts = json.loads(path.read_text())["counts"]
        total.update({name: sum(counts[name].values()) for name in COUNTED})
        total.update({name: counts[name] for name in ("merges", "batches", "samples")})
    return total


def assert_counts(planned: dict[str, Any], booked: Counter[str]) -> None:
    names = (*COUNTED, "merges", "batches")
    assert {name: planned[name] for name in names} == {name: booked[name] for name in names}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prompts": {"embeddings": "exact"}},
        {"compute": {"per_sample": "merge-loop"}},
        {"compute": {"read_bytes": 1 << 18, "tile": 16}, "grouping": {"batch_size": 20}},
        {"evaluation_sets": None},
    ],
    ids=["defaults", "a head for every λ", "a merge for every image", "several reads a part", "several sets"],
)
def test_counts_are_those_that_the_ledger_then_has(
    tmp_path: Path, pair: Path, archives: Path, settings: dict[str, Any]
) -> None:
    if settings.get("evaluation_sets", ...) is None:
        sets = [{"name": name, "source": {"kind": "synthetic", "count": 70, "seed": n}} for n, name in enumerate("ab")]
        settings, archives = {"evaluation_sets": sets, "part_rows": 40}, tmp_path / "archives"
        ingest_into = study(tmp_path / "ingest", pair, archives, **settings)
        ingest(ingest_into, LocalEngine(ingest_into))
    manifest = study(tmp_path, pair, archives, methods=EVERY_KIND, **settings)
    run = Path(manifest.output)

    before = stages(quick(manifest))
    run_precompute(manifest)
    assert_counts(before["precompute"]["left"], ledger(run, "precompute"))
    text = ledger(run, "embed")
    assert before["embed"]["left"]["text_forward_calls"] == text["text_forward_calls"] > 0
    assert before["embed"]["left"]["text_forward_images"] == text["text_forward_images"]

    planned = quick(manifest)
    assert planned["counts_exact"]
    run_infer(manifest)
    found = stages(planned)
    assert not found["precompute"]["left"]["parts"]
    merges = 0
    for selected in select_methods(manifest):
        booked = ledger(run, "infer", selected.key)
        assert_counts(found[selected.key]["left"], booked)
        merges += booked["merges"]
    assert merges > 0
    once = sum((ledger(run, "merge", name) for name in ("soup", "ties")), Counter())
    assert found["merge"]["left"]["merges"] == once["merges"] == 2
    assert found["merge"]["left"]["text_forward_calls"] == once["text_forward_calls"]


def test_counts_of_weights_per_source_are_those_of_the_ledger(tmp_path: Path, pair: Path, archives: Path) -> None:
    models = make_sources(tmp_path / "models")
    manifest = study_of_sources(tmp_path, models, archives, methods=["site-a", "mean", "entropy-adaptive"])
    before = quick(manifest)
    assert before["tolerance"] == []
    run_precompute(manifest)
    assert_counts(stages(before)["precompute"]["left"], ledger(Path(manifest.output), "precompute"))
    planned = stages(quick(manifest))
    run_infer(manifest)
    merging = [item.key for item in select_methods(manifest) if item.method.name != "site-a"]
    for key in merging:
        assert_counts(planned[key]["left"], ledger(Path(manifest.output), "infer", key))
    assert len(merging) == 2


def test_a_run_half_done_leaves_the_other_half(tmp_path: Path, finished: Manifest, pair: Path) -> None:
    manifest = copy_run(finished, tmp_path, pair)
    for method, parts in (("t3-batch", (1, 4)), ("generalist", (0,)), ("t3", range(5))):
        for part in parts:
            (predictions_folder(manifest, method) / f"part-{part:05d}.parquet").unlink()
    (Path(manifest.output) / "evidence" / "cells" / "part-00004.parquet").unlink()
    found = by_name(quick(manifest))
    left = {name: stage["left"] for name, stage in found.items()}
    assert (left["precompute"]["parts"], left["precompute"]["images"]) == (1, 90)
    assert (left["t3-batch"]["parts"], left["t3-batch"]["images"]) == (2, 128 + 90)
    assert left["generalist"]["parts"] == 1
    assert (left["t3"]["parts"], left["t3"]["images"]) == (5, 490)
    assert left["t3-lambda"]["parts"] == left["expert"]["parts"] == left["embed"]["parts"] == 0
    assert {name: found[name]["total"]["images"] for name in ("precompute", "t3-batch", "t3-lambda")} == {
        "precompute": 490,
        "t3-batch": 490,
        "t3-lambda": 490,
    }


def test_a_finished_run_costs_nothing_more(finished: Manifest) -> None:
    planned = quick(finished)
    assert all(not stage["left"]["parts"] for stage in planned["stages"])
    assert planned["times"]["left"]["1"]["seconds"] == 0 < planned["times"]["total"]["1"]["seconds"]
    assert sum(row["left"] for row in planned["storage"]) == 0


def test_nothing_is_left_behind(tmp_path: Path, finished: Manifest, pair: Path) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=EVERY_KIND)
    before = files_below(tmp_path, Path(finished.archives))
    quick(manifest)
    assert files_below(tmp_path, Path(finished.archives)) == before


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, pair: Path) -> tuple[Manifest, dict[str, Any]]:
    """A run from ingestion to predictions, and the plan that was made of it before anything was there."""
    folder = tmp_path_factory.mktemp("night")
    manifest = study(folder, pair, folder / "archives", methods=EVERY_KIND, evaluation_sets=NIGHT, part_rows=512)
    planned = plan(manifest, seconds=5.0, tolerances=(0.01,))
    assert not Path(manifest.archives).exists()
    ingest(manifest, LocalEngine(manifest))
    run_precompute(manifest)
    run_infer(manifest)
    return manifest, planned


def test_what_is_not_ingested_is_measured_on_first_images(night: tuple[Manifest, dict[str, Any]]) -> None:
    _, planned = night
    assert (planned["images"], stages(planned)["ingest"]["left"]["parts"]) == (1700, 4)
    price = planned["calibration"]["ingest"]["night"]
    assert 32 <= price["images"] <= 512
    assert any(f"night ({price['images']} images)" in note for note in planned["notes"])


def test_bytes_are_those_of_the_files(night: tuple[Manifest, dict[str, Any]]) -> None:
    """Planned before the first image was stored; within 10 %."""
    manifest, planned = night
    run = Path(manifest.output)
    places = {"archives": [Path(manifest.archives)], "ledger and rejects": [run / "ledger", run / "rejects"]}
    for row in planned["storage"]:
        folders = places.get(row["what"], [run / row["what"]])
        written = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
        assert row["left"] == row["total"] == pytest.approx(written, rel=0.1), row["what"]


def test_without_evidence_batches_are_scaled_from_first_images(night: tuple[Manifest, dict[str, Any]]) -> None:
    manifest, scaled = night
    known = quick(manifest, tolerances=(0.01,))
    assert (scaled["counts_exact"], known["counts_exact"]) == (False, True)
    assert any("scaled from the first" in note for note in scaled["notes"])
    assert scaled["tolerance"][0]["batches"] == pytest.approx(known["tolerance"][0]["batches"], rel=0.5)
    before, after = by_name(scaled), by_name(known)
    for name in ("t3", "soup", "oracle"):
        assert before[name]["left"]["image_forward_images"] == after[name]["total"]["image_forward_images"], name


def test_further_images_of_a_known_set_are_planned_as_parts_of_their_own(
    tmp_path: Path, finished: Manifest, pair: Path
) -> None:
    cells = finished.evaluation_sets[0].model_dump(mode="json", exclude_none=True)
    cells["source"].append({"kind": "synthetic", "count": 200, "seed": 9})
    planned = quick(copy_run(finished, tmp_path, pair, evaluation_sets=[cells]))
    left = {name: stage["left"] for name, stage in by_name(planned).items()}
    for name in ("ingest", "precompute", "t3-batch", "t3-lambda"):
        assert (left[name]["parts"], left[name]["images"]) == (2, 200), name
    assert left["t3-batch"]["image_forward_images"] == 200
    assert not planned["counts_exact"]


def test_tolerances_are_those_of_real_batch_plans(tmp_path: Path, finished: Manifest, pair: Path) -> None:
    planned = quick(finished, tolerances=(0.0, 0.03))
    for row in planned["tolerance"]:
        entry = {"name": "t3-lambda", "tolerance": row["tolerance"]}
        manifest = copy_run(finished, tmp_path / str(row["tolerance"]), pair, methods=[entry])
        summary = run_infer(manifest)
        batches = read_batches(manifest, "lambda")
        sizes = batches["size"].to_pylist()
        assert (row["size_min"], row["size_median"], row["size_max"]) == (min(sizes), np.median(sizes), max(sizes))
        assert (row["batches"], row["merges"]) == (len(sizes), summary.ledger.totals["merges"])
        lam, low, high = (batches[name].to_numpy().astype(float) for name in ("lambda", "lambda_min", "lambda_max"))
        assert row["reached"] == max((lam - low).max(), (high - lam).max()) <= row["tolerance"]
    exact, coarse = planned["tolerance"]
    assert exact["merges"] > coarse["merges"]


def test_evidence_made_with_other_prompts_is_refused_before_anything_is_measured(
    tmp_path: Path, finished: Manifest, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = copy_run(finished, tmp_path, pair, prompts={"templates": ["another {}."]})
    monkeypatch.setattr("pipeline.drivers.plan.open_sandbox", None)
    with pytest.raises(StaleCacheError, match="prompts changed"):
        quick(manifest)


def test_text_forwards_are_priced_apart_from_images(
    tmp_path: Path, pair: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    head_at = Heads.at

    def noted(heads: Heads, lam: float) -> ClassHead:
        asked.append(lam)
        return head_at(heads, lam)

    monkeypatch.setattr(Heads, "at", noted)
    manifest = study(tmp_path, pair, archives, methods=["t3-batch", "t3"], prompts={"embeddings": "exact"})
    plan(manifest, seconds=1.0)
    # One before the clock starts for batches, and one for images with a λ each, however often either is timed.
    assert asked == [0.5, 0.5]
