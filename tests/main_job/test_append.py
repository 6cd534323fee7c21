"""A night's new images: only their parts are computed, and nothing that was there before changes."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.drivers.ingest import ingest
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    MANIFEST,
    MERGING,
    METHODS,
    assert_same_files,
    chosen,
    modification_times,
    predictions_folder,
    read_answers,
    read_batches,
    read_predictions,
    result_files,
    run_both,
    run_infer,
    run_precompute,
    study,
)

FIRST = {"kind": "synthetic", "count": 300, "seed": 21, "site": "a"}
SECOND = {"kind": "synthetic", "count": 150, "seed": 22, "site": "c"}
# 300 images are parts 0 to 2 (the last one short), so the second night starts at part 3.
BOUNDARY = 3 * 128


def night(folder: Path, pair: Path, *sources: dict[str, Any], **settings: Any) -> Manifest:
    manifest = study(
        folder, pair, folder / "archives", evaluation_sets=[{"name": "night", "source": [*sources]}], **settings
    )
    ingest(manifest, LocalEngine(manifest))
    return manifest


def grown_after_the_first_night(folder: Path, pair: Path) -> tuple[Manifest, dict[str, bytes], dict[str, int]]:
    """A finished first night, the second one ingested; the first night's files and times."""
    first = run_both(night(folder, pair, FIRST))
    files, times = result_files(Path(first.output)), modification_times(folder)
    return night(folder, pair, FIRST, SECOND), files, times


def test_only_the_new_parts_are_computed_and_old_files_are_untouched(pair: Path, tmp_path: Path) -> None:
    manifest, files, times = grown_after_the_first_night(tmp_path, pair)
    stages = run_precompute(manifest), run_infer(manifest)
    assert [(summary.computed, summary.skipped) for summary in stages] == [(2, 3), (2 * len(METHODS), 3 * len(METHODS))]
    assert [summary.samples for summary in stages] == [150, 150 * len(MERGING)]
    calls = stages[0].ledger.per_model["image_forward_calls"]
    assert calls["generalist"] == calls["expert"] == 4 + 1
    after = result_files(Path(manifest.output))
    assert {name: after[name] for name in files} == files
    assert len(after) > len(files)
    now = modification_times(tmp_path)
    assert {name: now[name] for name in times} == times
    for method in METHODS:
        assert len(list(predictions_folder(manifest, method, "night").glob("part-*.parquet"))) == 5


@pytest.mark.parametrize("kind", ["arrival", "lambda", "sample"])
def test_no_batch_crosses_from_one_night_to_the_next(pair: Path, tmp_path: Path, kind: str) -> None:
    manifest = night(tmp_path, pair, FIRST, SECOND, grouping={"batch_size": 100})
    run_precompute(manifest)
    batches = read_batches(manifest, kind, "night")
    assert sum(batches["size"].to_pylist()) == 450
    for rows in batches["rows"].to_pylist():
        assert max(rows) < BOUNDARY or min(rows) >= BOUNDARY
    windows = list((Path(manifest.output) / "coefficients" / "t3" / "night").rglob("batches/*/part-*.parquet"))
    assert len(windows) == 3 * len({path.parent for path in windows})


def test_growing_gives_the_files_of_a_run_that_had_both_nights_from_the_start(pair: Path, tmp_path: Path) -> None:
    grown, _, _ = grown_after_the_first_night(tmp_path / "grown", pair)
    run_both(grown)
    whole = run_both(night(tmp_path / "whole", pair, FIRST, SECOND))
    assert_same_files(result_files(Path(grown.output)), result_files(Path(whole.output)))


def test_answers_for_old_images_do_not_depend_on_new_ones(pair: Path, tmp_path: Path) -> None:
    alone = run_both(night(tmp_path / "alone", pair, FIRST))
    both = run_both(night(tmp_path / "both", pair, FIRST, SECOND))
    for method in METHODS:
        old = read_predictions(alone, method, "night")
        assert read_predictions(both, method, "night").slice(0, 300).equals(old)


def test_new_images_must_be_ingested_first(pair: Path, tmp_path: Path, command_line: CommandLine) -> None:
    run_both(night(tmp_path, pair, FIRST))
    sets = [{"name": "night", "source": [FIRST, SECOND]}]
    study(tmp_path, pair, tmp_path / "archives", evaluation_sets=sets)
    code, _, err = command_line("precompute", str(tmp_path / MANIFEST), "--engine", "local")
    assert code == 2
    assert "lists sources that it does not hold yet; run `pipeline ingest`" in err


def test_a_night_that_is_no_longer_listed_or_another_one_is_refused(
    pair: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    night(tmp_path, pair, FIRST, SECOND)
    for sources in ([FIRST], [SECOND, FIRST], [FIRST, {**SECOND, "count": 151}]):
        study(tmp_path, pair, tmp_path / "archives", evaluation_sets=[{"name": "night", "source": sources}])
        code, _, err = command_line("ingest", str(tmp_path / MANIFEST), "--engine", "local")
        assert code == 2
        assert "is missing" in err or "changed in" in err


ORACLE: dict[str, Any] = {"name": "oracle", "points": 3}


def oracle_files(manifest: Manifest) -> dict[str, bytes]:
    folder = Path(manifest.output) / "predictions" / chosen(manifest, "oracle").key / "night"
    return {path.name: path.read_bytes() for path in folder.glob("part-*.parquet")}


def oracle_lambda(manifest: Manifest) -> float:
    (lam,) = set(read_answers(manifest, chosen(manifest, "oracle").key, "night")["lambda"].to_pylist())
    return float(lam)


def test_a_new_night_leaves_the_oracles_old_answers_alone_where_its_lambda_stays(pair: Path, tmp_path: Path) -> None:
    first = night(tmp_path, pair, FIRST, methods=[ORACLE])
    run_precompute(first)
    alone = run_infer(first)
    before, lam = oracle_files(first), oracle_lambda(first)
    assert (alone.computed, alone.skipped, len(before)) == (3, 0, 3)

    # Too few to outweigh the first night's choice.
    grown = night(tmp_path, pair, FIRST, {**SECOND, "count": 20}, methods=[ORACLE])
    run_precompute(grown)
    summary = run_infer(grown)
    after = oracle_files(grown)
    assert oracle_lambda(grown) == lam
    assert {name: after[name] for name in before} == before
    assert (summary.computed, summary.skipped, len(after)) == (1, 3, 4)

    # A lost file is made from the cached grid, and counted though no image was scored.
    folder = Path(grown.output) / "predictions" / chosen(grown, "oracle").key / "night"
    (folder / "part-00001.parquet").unlink()
    again = run_infer(grown)
    assert (again.computed, again.skipped, again.samples) == (1, 3, 0)
    assert oracle_files(grown) == after
