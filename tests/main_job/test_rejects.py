"""One bad image never stops the night: it is set apart with its reason, and its address stays a hole."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline.archives.archive import Archive
from pipeline.archives.synthetic import SyntheticSource
from pipeline.drivers.ingest import ingest
from pipeline.drivers.summary import Summary
from pipeline.engines.local import LocalEngine
from pipeline.errors import ArchiveUnavailableError, ProblemsError
from pipeline.manifest import Manifest
from pipeline.manifest.images import NpzSource
from pipeline.results.metrics import evaluate_run
from pipeline.stages.reading import read_block
from pipeline.stages.selection import select_methods
from tests.main_job.factory import (
    MERGING,
    METHODS,
    PlainClip,
    assert_same_files,
    predictions_folder,
    read_answers,
    read_batches,
    read_evidence,
    read_parts,
    read_predictions,
    read_samples,
    run_both,
    run_infer,
    run_precompute,
    study,
)

COUNT = 300
HOLES = [0, 33, 34, 127, 128, *range(160, 192), 299]


def write_npz(path: Path, wrong: list[int], count: int = COUNT) -> dict[str, Any]:
    """Cells as an .npz file in which the images at ``wrong`` have a label that no class has; its manifest entry."""
    source = SyntheticSource(count, 31)
    items = list(source.read(0, count))
    labels = np.array([[item.label] for item in items])
    labels[wrong] = 9
    np.savez(path, test_images=np.stack([np.asarray(item.image) for item in items]), test_labels=labels)
    spec = {"kind": "npz", "path": str(path), "split": "test", "class_names": list(source.class_names)}
    return {"name": "npz", "source": spec}


def ingested(folder: Path, pair: Path, wrong: list[int], **settings: Any) -> tuple[Manifest, Summary]:
    folder.mkdir(parents=True, exist_ok=True)
    entry = write_npz(folder / "cells.npz", wrong)
    manifest = study(folder, pair, folder / "archives", evaluation_sets=[entry], **settings)
    return manifest, ingest(manifest, LocalEngine(manifest))


def shard_path(archive: Archive, shard: int) -> Path:
    return archive.path / "images.zarr" / "c" / str(shard) / "0" / "0" / "0"


def damage_the_middle(archive: Archive) -> list[int]:
    """Flip bytes in the middle of the only shard; the rows that this costs."""
    path = shard_path(archive, 0)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(value ^ 0xFF for value in content[middle : middle + 8])
    path.write_bytes(content)
    return list(range(100, 200))


def test_an_image_with_an_unknown_label_leaves_a_hole_and_moves_nothing(pair: Path, tmp_path: Path) -> None:
    manifest, summary = ingested(tmp_path, pair, HOLES)
    assert (summary.samples, summary.rejected) == (COUNT - len(HOLES), len(HOLES))
    archive = Archive.open(tmp_path / "archives" / "npz")
    rejected = [row for part in range(archive.parts) for row in archive.rejects(part).to_pylist()]
    assert [row["row"] for row in rejected] == HOLES
    assert {row["reason"] for row in rejected} == {"label 9 is outside the 4 classes"}

    run_both(manifest)
    accepted = [row for row in range(COUNT) if row not in HOLES]
    assert read_evidence(manifest, "npz")["row"].to_pylist() == accepted
    for method in METHODS:
        predictions = read_predictions(manifest, method, "npz")
        assert predictions["row"].to_pylist() == accepted
        assert predictions["sample_id"].to_pylist() == [f"cells/test/{row}" for row in accepted]
    arrival = read_batches(manifest, "arrival", "npz")["rows"].to_pylist()
    expected = [[row for row in range(start, start + 32) if row in accepted] for start in range(0, COUNT, 32)]
    assert arrival == [rows for rows in expected if rows]
    assert len(arrival) == 9


def test_holes_do_not_change_the_evidence_of_other_parts(pair: Path, tmp_path: Path) -> None:
    with_holes, _ = ingested(tmp_path / "holes", pair, [5, 6])
    without, _ = ingested(tmp_path / "whole", pair, [])
    tables = []
    for manifest in (with_holes, without):
        run_precompute(manifest)
        tables.append(read_evidence(manifest, "npz"))
    # Neighbours in a tile do not matter at equal shape, so even the part with the holes has the same logits.
    kept = tables[1].filter(np.isin(tables[1]["row"].to_numpy(), [5, 6], invert=True))
    assert tables[0].equals(kept)


def test_a_part_without_a_single_usable_image_is_an_empty_part(pair: Path, tmp_path: Path) -> None:
    manifest, summary = ingested(tmp_path, pair, list(range(128, 256)))
    assert (summary.samples, summary.rejected) == (172, 128)
    run_both(manifest)
    assert read_evidence(manifest, "npz")["row"].to_pylist() == [*range(128), *range(256, 300)]
    for method in METHODS:
        assert len(list(predictions_folder(manifest, method, "npz").glob("part-*.parquet"))) == 3
        assert len(read_predictions(manifest, method, "npz")) == 172
    online = study(
        tmp_path / "online", pair, tmp_path / "archives", evaluation_sets=[write_npz(tmp_path / "c.npz", [])]
    )
    online = online.model_copy(update={"evaluation_sets": manifest.evaluation_sets})
    run_infer(online, online=True)
    for method in MERGING:
        folders = (predictions_folder(m, method, "npz") for m in (online, manifest))
        assert_same_files(*({p.name: p.read_bytes() for p in folder.glob("part-*")} for folder in folders))


def test_a_set_of_which_every_image_is_rejected_ends_without_rows(pair: Path, tmp_path: Path) -> None:
    manifest, summary = ingested(tmp_path, pair, list(range(COUNT)), grouping={"window": {"rows": 128}})
    assert (summary.samples, summary.rejected) == (0, COUNT)
    run_both(manifest)
    assert len(read_evidence(manifest, "npz")) == len(read_samples(manifest, "npz")) == 0
    for method in METHODS:
        assert len(read_parts(predictions_folder(manifest, method, "npz"))) == 0


@pytest.fixture
def damaged(pair: Path, tmp_path: Path) -> tuple[Manifest, Archive]:
    """300 cells in one part and one shard, of which the middle one of three chunks can be damaged."""
    manifest, _ = ingested(tmp_path, pair, [], part_rows=COUNT)
    return manifest, Archive.open(tmp_path / "archives" / "npz")


def test_images_that_cannot_be_read_are_rejected_by_stage_one(damaged: tuple[Manifest, Archive]) -> None:
    manifest, archive = damaged
    lost = damage_the_middle(archive)
    summary = run_precompute(manifest)
    assert (summary.samples, summary.rejected) == (COUNT - len(lost), len(lost))
    rejects = read_parts(Path(manifest.output) / "rejects" / "precompute" / "npz")
    assert rejects["row"].to_pylist() == lost
    assert rejects["sample_id"].to_pylist() == [f"cells/test/{row}" for row in lost]
    assert all(reason for reason in rejects["reason"].to_pylist())
    assert len(read_evidence(manifest, "npz")) + len(rejects) == COUNT

    inferred = run_infer(manifest)
    assert inferred.rejected == 0
    for method in METHODS:
        assert len(read_predictions(manifest, method, "npz")) == COUNT - len(lost)
    assert len(evaluate_run(Path(manifest.output))) > 0


def test_images_that_cannot_be_read_any_more_are_rejected_by_stage_two(damaged: tuple[Manifest, Archive]) -> None:
    manifest, archive = damaged
    run_precompute(manifest)
    lost = damage_the_middle(archive)
    summary = run_infer(manifest)
    assert summary.rejected == len(lost) * len(MERGING)
    for method in MERGING:
        stage = Path(manifest.output) / "rejects" / "infer" / predictions_folder(manifest, method).parent.name
        rejects = read_parts(stage / "npz").sort_by("row")
        predictions = read_predictions(manifest, method, "npz")
        assert rejects["row"].to_pylist() == lost
        assert rejects["sample_id"].to_pylist() == [f"cells/test/{row}" for row in lost]
        assert all(reason for reason in rejects["reason"].to_pylist())
        assert sorted(predictions["row"].to_pylist() + lost) == list(range(COUNT))
    # The plain models were read while the pixels could be.
    assert len(read_predictions(manifest, "expert", "npz")) == COUNT


def test_readable_neighbours_of_a_damaged_image_are_answered_as_if_nothing_had_happened(
    damaged: tuple[Manifest, Archive], pair: Path, tmp_path: Path
) -> None:
    manifest, archive = damaged
    run_both(manifest)
    undamaged = {method: read_predictions(manifest, method, "npz") for method in MERGING}
    lost = damage_the_middle(archive)
    entry = [item.model_dump() for item in manifest.evaluation_sets]
    again = study(tmp_path / "again", pair, tmp_path / "archives", evaluation_sets=entry, part_rows=COUNT)
    for table in ("evidence", "embeddings"):
        target = Path(again.output) / table
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(Path(manifest.output) / table)
    run_infer(again)
    for method in MERGING:
        expected = undamaged[method].filter(np.isin(undamaged[method]["row"].to_numpy(), lost, invert=True))
        assert read_predictions(again, method, "npz").equals(expected)


@pytest.mark.parametrize("method", MERGING)
def test_images_that_cannot_be_read_are_rejected_online_with_their_reason(
    damaged: tuple[Manifest, Archive], method: str
) -> None:
    manifest, archive = damaged
    lost = damage_the_middle(archive)
    summary = run_infer(manifest, method, online=True)
    assert (summary.samples, summary.rejected) == (COUNT - len(lost), len(lost))
    assert (summary.ledger.totals["samples"], summary.ledger.totals["rejected"]) == (COUNT - len(lost), len(lost))
    folder = predictions_folder(manifest, method).parent.name
    rejects = read_parts(Path(manifest.output) / "rejects" / "infer" / folder / "npz").sort_by("row")
    assert rejects["row"].to_pylist() == lost
    assert all(reason for reason in rejects["reason"].to_pylist())
    assert len(read_predictions(manifest, method, "npz")) == COUNT - len(lost)


def test_a_lost_shard_rejects_its_images(pair: Path, tmp_path: Path) -> None:
    manifest, _ = ingested(tmp_path, pair, [])
    shard_path(Archive.open(tmp_path / "archives" / "npz"), 1).unlink()
    summary = run_precompute(manifest)
    assert (summary.samples, summary.rejected) == (COUNT - 128, 128)


def test_an_archive_that_vanishes_costs_no_image(damaged: tuple[Manifest, Archive], tmp_path: Path) -> None:
    _, archive = damaged
    rows = np.arange(100, 120)
    assert read_block(archive, rows).unreadable == {}
    # As when the file system that it lies on is not mounted any more.
    archive.path.rename(tmp_path / "elsewhere")
    with pytest.raises(
        ArchiveUnavailableError, match=r"cannot be read for now \(it is not there any more; .*run the command again"
    ):
        read_block(archive, rows)
    with pytest.raises(ArchiveUnavailableError):
        archive.readable(rows)
    (tmp_path / "elsewhere").rename(archive.path)
    assert read_block(archive, rows).unreadable == {}


def test_evidence_made_again_after_a_repair_reaches_every_table(damaged: tuple[Manifest, Archive]) -> None:
    manifest, archive = damaged
    shards = {path: path.read_bytes() for path in (archive.path / "images.zarr").rglob("*") if path.is_file()}
    lost = damage_the_middle(archive)
    run_both(manifest)
    assert len(read_predictions(manifest, "t3-batch", "npz")) == COUNT - len(lost)

    for path, content in shards.items():
        path.write_bytes(content)
    for path in (Path(manifest.output) / "evidence" / "npz").glob("*"):
        path.unlink()
    run_both(manifest)
    assert len(read_samples(manifest, "npz")) == COUNT
    for method in METHODS:
        assert sorted(read_predictions(manifest, method, "npz")["row"].to_pylist()) == list(range(COUNT))
    assert evaluate_run(Path(manifest.output))["samples"].to_list() == [COUNT] * len(METHODS)


def test_other_class_names_of_the_source_are_refused_by_name(damaged: tuple[Manifest, Archive]) -> None:
    manifest, _ = damaged
    (entry,) = manifest.evaluation_sets
    (source,) = entry.source
    assert isinstance(source, NpzSource)
    renamed = source.model_copy(update={"class_names": source.class_names[::-1]})
    changed = manifest.model_copy(update={"evaluation_sets": [entry.model_copy(update={"source": [renamed]})]})
    with pytest.raises(ProblemsError, match="source 0 changed in class_names"):
        run_precompute(changed)


@pytest.fixture(scope="module")
def overflowing(pair: Path, archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A run in which the expert alone has logits that are not finite, for some images; merged models have none."""
    folder = tmp_path_factory.mktemp("overflowing")
    plain, models = PlainClip(), folder / "pair"
    shutil.copytree(pair, models)
    state = load_file(models / "expert.safetensors")
    largest = plain.largest_features(state)
    state["visual.proj"] *= float(np.finfo(np.float32).max / np.quantile(list(largest.values()), 0.9))
    save_file(state, models / "expert.safetensors")
    methods = ["generalist", "expert", "ensemble", "soup", {"name": "oracle", "points": 3}, "t3-batch"]
    return run_both(study(folder, models, archives, methods=methods))


def test_every_method_answers_exactly_the_rows_of_evidence(overflowing: Manifest) -> None:
    rows = read_evidence(overflowing)["row"].to_pylist()
    rejects = read_parts(Path(overflowing.output) / "rejects" / "precompute" / "cells")
    assert len(rows) + len(rejects) == 490
    assert 10 < len(rejects) < 100
    assert set(rejects["reason"].to_pylist()) == {"logits are not finite"}
    for item in select_methods(overflowing):
        assert read_answers(overflowing, item.key)["row"].to_pylist() == rows, item.key
    summary = run_infer(overflowing)
    assert summary.computed == 0


def test_images_that_stage_one_rejected_count_alike_for_every_method(overflowing: Manifest) -> None:
    rejected = len(read_parts(Path(overflowing.output) / "rejects" / "precompute" / "cells"))
    frame = evaluate_run(Path(overflowing.output))
    assert frame["method"].to_list() == [item.key for item in select_methods(overflowing)]
    assert set(frame["samples"].to_list()) == {490 - rejected}
    assert set(frame["rejected"].to_list()) == {rejected}
