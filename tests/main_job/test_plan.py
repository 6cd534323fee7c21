"""A plan says before the night what its ledger, its folders and its batches then are."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from pipeline.archives.archive import Archive
from pipeline.archives.shards import ChunkCache
from pipeline.drivers.ingest import ingest
from pipeline.drivers.plan import plan
from pipeline.drivers.planning.batches import WIDEST_GAP, imagine_lambdas
from pipeline.drivers.planning.decoding import WindowReader
from pipeline.drivers.planning.elapsed import Seconds, bottleneck, makespan
from pipeline.engines.local import LocalEngine
from pipeline.errors import StaleCacheError
from pipeline.manifest import Manifest
from pipeline.results.plan_tables import duration, plan_tables, size
from pipeline.stages.selection import select_methods
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    MANIFEST,
    copy_run,
    make_sources,
    predictions_folder,
    read_batches,
    run_infer,
    run_precompute,
    study,
    study_of_sources,
)

COUNTED = ("image_forward_calls", "image_forward_images", "text_forward_calls", "text_forward_images")
EVERY_KIND = [
    "generalist",
    "ensemble",
    "t3-batch",
    "t3",
    {"name": "t3-lambda", "tolerance": 0.02},
    {"name": "t3-batch", "batch_size": 5},
    "t3-mixture",
    "soup",
    "ties",
    {"name": "oracle", "points": 4},
]
# A night that is long enough for its files to be more than their footers.
NIGHT = [{"name": "night", "source": {"kind": "synthetic", "count": 1700, "seed": 4}}]


def quick(manifest: Manifest, **settings: Any) -> dict[str, Any]:
    """A plan that measures everything once: counts and bytes do not depend on how long is measured."""
    return plan(manifest, seconds=0.0, **settings)


def stages(planned: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["method"] or stage["stage"]: stage for stage in planned["stages"]}


def by_name(planned: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages, those of methods by their plain names."""
    return {key.partition("@")[0]: stage for key, stage in stages(planned).items()}


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


def files_below(*folders: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


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


@given(
    known=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40),
    count=st.integers(1, 200),
    seed=st.integers(0, 5),
)
def test_imagined_lambdas_lie_where_known_ones_do(known: list[float], count: int, seed: int) -> None:
    imagined = imagine_lambdas(np.array(known, dtype=np.float32), count, seed=seed)
    assert len(imagined) == count
    ascending = np.sort(known)
    for lam in imagined.astype(np.float64):
        place = np.searchsorted(ascending, lam)
        below = ascending[max(place - 1, 0)]
        above = ascending[min(place, len(ascending) - 1)]
        assert below - 1e-6 <= lam <= above + 1e-6
        assert above - below <= WIDEST_GAP + 1e-6 or np.isclose(lam, [below, above], atol=1e-6).any()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (Seconds(read=1, device=3, write=2), "device"),
        (Seconds(read=4, device=3, write=2), "reading"),
        (Seconds(read=4, device=3, write=5), "writing"),
        (Seconds(), "nothing"),
    ],
)
def test_the_bottleneck_is_what_the_others_wait_for(seconds: Seconds, expected: str) -> None:
    assert bottleneck(seconds) == expected


@given(read=st.floats(0, 10), device=st.floats(0, 10), write=st.floats(0, 10), blocks=st.integers(1, 20))
def test_reading_overlaps_with_the_device(read: float, device: float, write: float, blocks: int) -> None:
    """Block by block: a block is scored once it is read and the one before it is scored."""
    done_reading = done_scoring = 0.0
    for _ in range(blocks):
        done_reading += read / blocks
        done_scoring = max(done_reading, done_scoring) + device / blocks
    assert Seconds(read, device, write, blocks).elapsed == pytest.approx(done_scoring + write)


def test_workers_take_the_next_item_as_soon_as_they_are_free() -> None:
    assert makespan([3, 1, 1, 1, 2], 2) == 5
    assert makespan([3, 1, 1, 1, 2], 1) == 8
    assert makespan([3, 1], 9) == 3
    assert makespan([], 4) == 0


def test_more_workers_than_parts_do_not_help_and_it_is_said(finished: Manifest, tmp_path: Path, pair: Path) -> None:
    manifest = study(tmp_path, pair, Path(finished.archives), compute={"threads": 1})
    planned = quick(manifest, workers=[1, 5, 50])
    times = stages(planned)["precompute"]["left"]["times"]
    assert [times[count]["workers"] for count in ("1", "5", "50")] == [1, 5, 5]
    assert times["50"] == times["5"]
    assert times["5"]["seconds"] < times["1"]["seconds"]
    assert any("50 workers are more than there are parts" in note for note in planned["notes"])
    assert any("cores of their own" in note for note in planned["notes"])


def test_fewer_workers_than_parts_are_not_called_too_many(finished: Manifest, tmp_path: Path, pair: Path) -> None:
    planned = quick(study(tmp_path, pair, Path(finished.archives)), workers=[4])
    assert not stages(planned)["generalist"]["parallel"], "the driver alone copies what evidence holds"
    assert not any("more than there are parts" in note for note in planned["notes"])


@pytest.mark.parametrize("room_chunks", [0, 2, 5])
def test_images_decoded_are_counted_as_the_reader_decodes_them(archives: Path, room_chunks: int) -> None:
    archive = Archive.open(archives / "cells")
    chunk_rows = archive.pixels.chunk_rows
    room = room_chunks * chunk_rows * archive.geometry.height * archive.geometry.width * 3
    reader, cache = WindowReader(archive, room), ChunkCache(room)
    rows = np.concatenate([archive.samples(part)["row"].to_numpy() for part in range(archive.parts)])
    for block in np.array_split(np.random.default_rng(0).permutation(rows), 6):
        before = cache.decoded
        archive.read(block, cache)
        assert reader.decode(block) == (cache.decoded - before) * chunk_rows


def test_a_worker_keeps_decoded_pixels_only_for_rows_out_of_order(
    finished: Manifest, tmp_path: Path, pair: Path
) -> None:
    held = {
        method: quick(study(tmp_path / method, pair, Path(finished.archives), methods=[method]))["memory"]["pixels"]
        for method in ("t3-batch", "t3-lambda")
    }
    assert held["t3-lambda"] - held["t3-batch"] == 256 * 28 * 28 * 3, "all pixels of the largest window"


def test_a_plan_that_is_terminated_leaves_nothing_behind(
    finished: Manifest, tmp_path: Path, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = study(tmp_path, pair, Path(finished.archives))
    before = files_below(tmp_path)
    seen: list[Path] = []

    def end(*_: object) -> None:
        seen.extend(tmp_path.glob(".tmp-plan-*"))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("pipeline.drivers.plan.measure_heads", end)
    with pytest.raises(SystemExit) as ended:
        quick(manifest)
    assert (ended.value.code, len(seen)) == (128 + signal.SIGTERM, 1)
    assert files_below(tmp_path) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_what_is_measured_is_the_numeric_kind_of_the_run(
    finished: Manifest, tmp_path: Path, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = 0

    def compile_in_a_second(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        time.sleep(1)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compile_in_a_second))
    torch.compiler.reset()
    manifest = study(tmp_path, pair, Path(finished.archives), methods=["t3-batch"], compute={"compile": True})
    measured = quick(manifest)["calibration"]
    assert compiled
    assert max(measured["sources"], *measured["merged"].values()) < 1, "compiling is no price of a tile"


def test_weights_made_from_another_checkpoint_are_refused(tmp_path: Path, finished: Manifest, pair: Path) -> None:
    manifest = copy_run(finished, tmp_path, pair, prompts={"templates": ["another {}."]})
    with pytest.raises(StaleCacheError, match="prompts changed"):
        quick(manifest)


def test_the_command_prints_for_programs_and_for_people(
    command_line: CommandLine, tmp_path: Path, finished: Manifest, pair: Path
) -> None:
    study(tmp_path, pair, Path(finished.archives))
    asked = ("plan", str(tmp_path / MANIFEST), "--seconds", "0", "--workers", "1", "--workers", "4")
    code, out, err = command_line(*asked, "--method", "t3-batch", "--tolerance", "0.1,0", "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert planned["workers"] == [1, 4]
    assert [name for name, stage in by_name(planned).items() if stage["method"]] == ["t3-batch"]
    assert [row["tolerance"] for row in planned["tolerance"]] == [0.0, 0.1]
    assert "plan: " in err
    code, out, err = command_line(*asked)
    assert code == 0, err
    for word in ("precompute", "t3-lambda", "core-h", "left to do", "storage", "memory of a worker"):
        assert word in out


def test_tables_fit_into_a_hundred_columns(tmp_path: Path, finished: Manifest, pair: Path) -> None:
    planned = quick(study(tmp_path, pair, Path(finished.archives)), workers=[1, 4])
    console = Console(width=200, record=True, quiet=True)
    tables = [item for item in plan_tables(planned) if isinstance(item, Table)]
    assert [console.measure(table).maximum <= 100 for table in tables] == [True, True, True]


@pytest.mark.parametrize("value", ["", "a", "0,2", "-0.1", "nan"])
def test_what_is_no_tolerance_is_refused_in_one_line(command_line: CommandLine, finished: Manifest, value: str) -> None:
    manifest = Path(finished.output).parent / MANIFEST
    code, out, err = command_line("plan", str(manifest), "--tolerance", value)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "--tolerance" in err


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.004, "<0.01 s"), (2.34, "2.34 s"), (600, "10 min"), (3600 * 8.5, "8 h 30 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_sizes_have_the_unit_that_fits() -> None:
    assert [size(count) for count in (12, 1500, 2.5e9, 3e12)] == ["12 B", "1.5 kB", "2.5 GB", "3 TB"]
