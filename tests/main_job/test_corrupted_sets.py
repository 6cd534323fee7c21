"""Corrupted sets through both stages: evidence says what was done to which base image."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.archives.archive import Archive
from pipeline.drivers.ingest import ingest
from pipeline.engines.local import LocalEngine
from pipeline.errors import StaleCacheError
from pipeline.manifest import Manifest
from pipeline.stages.sources import check_declared
from tests.main_job.factory import read_evidence, read_predictions, run_both, run_infer, run_precompute, study

CLASSES = ["red", "white", "blue"]
BASE = 30
ADDED = ("group_id", "corruption", "severity")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean set and two corruptions of it, as MedMNIST and MedMNIST-C lay them out; one label is out of range."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    labels = (np.arange(BASE) % 3)[:, None].astype(np.uint8)
    np.savez(folder / "cells.npz", test_images=images(generator, BASE), test_labels=labels)
    (folder / "medmnist-c" / "cells").mkdir(parents=True)
    for name in ("fog", "pixelate"):
        repeated = np.tile(labels, (5, 1))
        if name == "fog":
            repeated[BASE + 2] = 7
        path = folder / "medmnist-c" / "cells" / f"{name}.npz"
        np.savez(path, test_images=images(generator, 5 * BASE), test_labels=repeated)
    return folder


def images(generator: np.random.Generator, count: int) -> np.ndarray:
    return generator.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)


def sets_of(data: Path, **changes: dict[str, Any]) -> list[dict[str, Any]]:
    part = {"images": 12, "seed": 1}
    npz = {"kind": "npz", "path": str(data / "cells.npz"), "split": "test", "class_names": CLASSES, "stratified": part}
    released = {
        "kind": "medmnist-c",
        "dataset": "cells",
        "class_names": CLASSES,
        "severities": [1, 2],
        "stratified": {"images": BASE, "seed": 0},
    }
    ours = {"kind": "corrupt", "of": npz, "corruptions": ["shot_noise"], "severities": [2, 4]}
    sources = {"clean": npz, "released": released, "ours": ours}
    return [
        {"name": name, "source": source | changes.get(name, {}), **({} if name == "clean" else {"clean": "clean"})}
        for name, source in sources.items()
    ]


def make(folder: Path, pair: Path, data: Path, archives: Path, **settings: Any) -> Manifest:
    chosen: dict[str, Any] = {"data_root": str(data), "part_rows": 32, "grouping": {"window": {"rows": 64}}, **settings}
    return study(folder, pair, archives, evaluation_sets=chosen.pop("sets", sets_of(data)), **chosen)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pair: Path, data: Path) -> Manifest:
    """A run over the three sets. Not to be written to."""
    folder = tmp_path_factory.mktemp("corrupted")
    manifest = make(folder, pair, data, folder / "archives")
    summary = ingest(manifest, LocalEngine(manifest))
    assert (summary.samples, summary.rejected) == (12 + 4 * BASE - 1 + 24, 1)
    return run_both(manifest)


def test_evidence_keeps_group_corruption_and_severity(finished: Manifest) -> None:
    evidence = read_evidence(finished, "released")
    assert [(field.name, field.type) for field in evidence.schema][2:6] == [
        ("label", pa.int32()),
        ("group_id", pa.string()),
        ("corruption", pa.string()),
        ("severity", pa.int32()),
    ]
    listed = [(name, severity, i) for name in ("fog", "pixelate") for severity in (1, 2) for i in range(BASE)]
    del listed[BASE + 2]
    assert evidence["sample_id"].to_pylist() == [f"cells/{name}/{severity}/{i}" for name, severity, i in listed]
    assert evidence["group_id"].to_pylist() == [f"cells/test/{i}" for _, _, i in listed]
    assert evidence["corruption"].to_pylist() == [name for name, _, _ in listed]
    assert evidence["severity"].to_pylist() == [severity for _, severity, _ in listed]


def test_all_versions_of_an_image_are_one_cluster_across_sets(finished: Manifest) -> None:
    clean, ours = read_evidence(finished, "clean"), read_evidence(finished, "ours")
    assert clean["corruption"].null_count == clean["severity"].null_count == clean["group_id"].null_count == 12
    ids = clean["sample_id"].to_pylist()
    assert ours["group_id"].to_pylist() == ids * 2
    assert ours["severity"].to_pylist() == [2] * 12 + [4] * 12
    assert set(ours["corruption"].to_pylist()) == {"shot_noise"}
    released = set(read_evidence(finished, "released")["group_id"].to_pylist())
    assert set(ids) < released
    assert len(released) == BASE


def test_every_method_answers_every_corrupted_image(finished: Manifest) -> None:
    rows = read_evidence(finished, "released")["row"].to_pylist()
    for method in ("generalist", "t3", "t3-batch", "t3-lambda"):
        assert read_predictions(finished, method, "released")["row"].to_pylist() == rows


def rewrite_without(paths: Sequence[Path], columns: Sequence[str]) -> None:
    """Make tables as an earlier version wrote them: fewer columns, the same footer."""
    for path in paths:
        table = pq.ParquetFile(path).read()
        pq.write_table(table.drop_columns(list(columns)), path)
        assert pq.read_schema(path).metadata[b"pipeline.fingerprint"]


def test_an_archive_from_before_has_nulls_there(pair: Path, data: Path, tmp_path: Path) -> None:
    manifest = make(tmp_path, pair, data, tmp_path / "archives")
    ingest(manifest, LocalEngine(manifest))
    archive = Archive.open(tmp_path / "archives" / "released")
    before = archive.samples(0)
    rewrite_without([archive.samples_path(0)], ADDED[1:])
    after = archive.samples(0)
    assert after.schema.remove_metadata() == before.schema.remove_metadata()
    assert after["severity"].null_count == after["corruption"].null_count == len(after) > 0
    assert after["group_id"] == before["group_id"]
    run_precompute(manifest)
    evidence = read_evidence(manifest, "released")
    assert evidence["severity"].null_count == len(after)


def test_evidence_from_before_is_still_grouped_and_scored(pair: Path, data: Path, tmp_path: Path) -> None:
    methods = ["generalist", "t3-batch", "entropy-adaptive"]
    manifest = make(tmp_path, pair, data, tmp_path / "archives", methods=methods)
    ingest(manifest, LocalEngine(manifest))
    run_precompute(manifest)
    rewrite_without(sorted((Path(manifest.output) / "evidence" / "released").glob("part-00000.parquet")), ADDED)
    for folder in Path(manifest.output, "coefficients").rglob("part-*.parquet"):
        folder.unlink()
    run_infer(manifest)
    for method in methods:
        assert len(read_predictions(manifest, method, "released")) == 4 * BASE - 1


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("clean", {"stratified": {"images": 12, "seed": 2}}, "stratified"),
        ("clean", {"stratified": None}, "stratified"),
        ("released", {"severities": [1]}, "severities"),
        ("released", {"corruptions": ["pixelate"]}, "corruptions"),
        ("released", {"folds": ["digital"]}, "folds"),
        ("released", {"class_names": CLASSES[::-1]}, "class_names"),
        ("ours", {"seed": 1}, "seed"),
        ("ours", {"parameters": "dermamnist"}, "parameters"),
        ("ours", {"stratified": {"images": 3, "seed": 1}}, "of.stratified"),
    ],
    ids=str,
)
def test_a_changed_source_is_refused_by_name_without_opening_it(
    finished: Manifest, pair: Path, data: Path, tmp_path: Path, name: str, change: dict[str, Any], said: str
) -> None:
    sets = sets_of(data, **{name: change})
    if said == "of.stratified":
        del sets[2]["source"]["of"]["stratified"]
    manifest = make(tmp_path, pair, data, Path(finished.archives), sets=sets)
    item = next(item for item in manifest.evaluation_sets if item.name == name)
    archive = Archive.open(Path(finished.archives) / name)
    check_declared(finished.evaluation_sets[[s["name"] for s in sets].index(name)], archive)
    with pytest.raises(StaleCacheError, match=rf"source 0 changed in {said} since it was stored"):
        check_declared(item, archive)


def test_the_run_says_which_set_is_the_clean_one(finished: Manifest) -> None:
    recorded = Manifest.model_validate(read_run(finished)["manifest"])
    assert [item.clean for item in recorded.evaluation_sets] == [None, "clean", "clean"]


def read_run(manifest: Manifest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(manifest.output) / "run.json").read_text())
    return content
