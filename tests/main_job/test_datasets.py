"""Data statistics and provenance: what archives hold, counted by hand or by NumPy from the source files."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medmnist.info import INFO
from PIL import Image
from rich.console import Console

from pipeline.archives.folder import FolderSource
from pipeline.archives.synthetic import SyntheticSource
from pipeline.drivers.datasets import list_datasets
from pipeline.drivers.ingest import ingest
from pipeline.engines.local import LocalEngine
from pipeline.errors import ArchiveError, ProblemsError
from pipeline.manifest import Manifest
from pipeline.results.dataset_tables import datasets_tables
from pipeline.results.datasets import (
    PROVENANCE_SCHEMA,
    STATISTICS_SCHEMA,
    dataset_provenance,
    dataset_statistics,
)
from pipeline.store.fingerprints import digest_file, digest_json
from tests.archives.medimeta_factory import make_medimeta, some_images
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import MANIFEST, study

NIGHTS = [{"kind": "synthetic", "count": 60, "seed": 3}, {"kind": "synthetic", "count": 25, "seed": 3, "site": "c"}]
NOISE = {"kind": "synthetic", "count": 20, "seed": 3, "corruption": "noise", "severity": 2}
LABELS = [0, 1, 1, 1, 9, 2, 2, 1]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, pair: Path) -> Manifest:
    """An ingested study of four sets. Not to be written to."""
    folder = tmp_path_factory.mktemp("datasets")
    patients = ["a", "a", "b", "b", "c", "c", "", "a"]
    images = some_images(8, 40, 40, 3)
    info = {"original_download_url": "https://example.org/cells"}
    make_medimeta(folder / "cells", images, LABELS, names=("x", "y", "z"), patients=patients, **info)
    for number, image in enumerate(images):
        path = folder / "clinic" / "images" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    lines = [
        f"images/{number}.png,{label}" for number, label in enumerate(["sick", "well", "", "well", "", "", "sick"])
    ]
    (folder / "labels.csv").write_text("\n".join(["path,label", *lines, "images/lost.png,well"]))
    sets = [
        {"name": "nights", "source": NIGHTS},
        {"name": "noise", "condition": "noise", "source": NOISE},
        {"name": "novel", "condition": "base-to-novel", "source": medimeta(folder)},
        {"name": "clinic", "source": {"kind": "folder", "path": "clinic", "labels": "labels.csv"}},
    ]
    manifest = study(folder, pair, folder / "archives", evaluation_sets=sets, part_rows=32)
    ingest(manifest, LocalEngine(manifest))
    return manifest


def medimeta(folder: Path) -> dict[str, Any]:
    return {"kind": "medimeta", "dataset": "cells", "root": str(folder), "split": "test"}


def rows(frame: Any) -> dict[str, dict[str, Any]]:
    return {row["evaluation_set"]: row for row in frame.to_dicts()}


def test_statistics_count_what_is_stored(stored: Manifest) -> None:
    statistics, _ = list_datasets([stored])
    assert statistics.schema == STATISTICS_SCHEMA
    found = rows(statistics)
    assert list(found) == ["nights", "noise", "novel", "clinic"]

    images = [
        item for spec in (("a", 60), ("c", 25)) for item in SyntheticSource(spec[1], 3, site=spec[0]).read(0, spec[1])
    ]
    expected = Counter(item.label for item in images)
    nights = found["nights"]
    assert nights["class_counts"] == [expected[label] for label in range(4)]
    assert nights["class_names"] == list(SyntheticSource(1, 3).class_names)
    assert (nights["images"], nights["rejected"], nights["unlabelled"]) == (85, 0, 0)
    assert nights["majority_rate"] == max(expected.values()) / 85
    assert nights["groups"] == 60
    assert (nights["stored_size"], nights["source_size"]) == ("28x28", "28x28")
    assert (nights["condition"], found["noise"]["condition"]) == ("in-domain", "noise")

    novel = found["novel"]
    assert (novel["images"], novel["rejected"], novel["class_counts"]) == (7, 1, [1, 4, 2])
    assert (novel["smallest_class"], novel["largest_class"], novel["majority_rate"]) == (1, 4, 4 / 7)
    assert (novel["groups"], novel["source_size"]) == (3, "40x40")

    clinic = found["clinic"]
    assert (clinic["images"], clinic["rejected"], clinic["unlabelled"]) == (7, 1, 3)
    assert (clinic["class_names"], clinic["class_counts"]) == (["sick", "well"], [2, 2])
    assert (clinic["majority_rate"], clinic["groups"], clinic["source_size"]) == (0.5, None, None)


def test_provenance_names_kind_files_digests_and_what_the_data_set_states(stored: Manifest) -> None:
    _, provenance = list_datasets([stored])
    assert provenance.schema == PROVENANCE_SCHEMA
    assert provenance["evaluation_set"].to_list() == ["nights", "nights", "noise", "novel", "clinic"]
    assert provenance["source"].to_list() == [0, 1, 0, 0, 0]
    assert provenance["images"].to_list() == [60, 25, 20, 8, 8]
    found = rows(provenance)
    folder = Path(stored.archives).parent
    novel = found["novel"]
    assert (novel["kind"], novel["name"], novel["split"]) == ("medimeta", "cells", "test")
    assert novel["sha256"] == digest_file(folder / "cells" / "images.hdf5")
    assert (novel["license"], novel["homepage"]) == ("CC BY 4.0", "https://example.org/cells")
    assert (found["clinic"]["kind"], found["clinic"]["name"]) == ("folder", "clinic")
    source = FolderSource(folder / "clinic", labels=folder / "labels.csv")
    assert found["clinic"]["sha256"] == source.identity["sha256"]
    assert (found["noise"]["corruptions"], found["noise"]["severities"]) == (["noise"], [2])
    assert found["novel"]["corruptions"] == []


def test_real_sets_are_counted_as_numpy_counts_their_files(data_root: Path, pair: Path, tmp_path: Path) -> None:
    file = data_root / "medmnist" / "breastmnist.npz"
    noise = {"kind": "medmnist-c", "dataset": "breastmnist", "corruptions": ["speckle_noise"], "severities": [1, 5]}
    sets = [
        {"name": "breast", "source": {"kind": "medmnist", "flag": "breastmnist", "split": "test"}},
        {"name": "noise", "condition": "noise", "source": noise, "clean": "breast"},
    ]
    manifest = study(tmp_path, pair, tmp_path / "a", evaluation_sets=sets, data_root=str(data_root))
    ingest(manifest, LocalEngine(manifest))
    statistics, provenance = (rows(frame) for frame in list_datasets([manifest]))
    with np.load(file) as arrays:
        counts = np.bincount(arrays["test_labels"][:, 0])
    assert statistics["breast"]["class_counts"] == counts.tolist()
    assert statistics["noise"]["class_counts"] == (2 * counts).tolist()
    assert statistics["noise"]["groups"] == counts.sum()
    breast = provenance["breast"]
    assert (breast["kind"], breast["name"], breast["sha256"]) == ("medmnist", "breastmnist.npz", digest_file(file))
    assert breast["license"] == INFO["breastmnist"]["license"]
    assert breast["homepage"].startswith("https://")
    corrupted = data_root / "medmnist-c" / "breastmnist" / "speckle_noise.npz"
    assert provenance["noise"]["sha256"] == digest_json({"speckle_noise": digest_file(corrupted)})
    assert (provenance["noise"]["corruptions"], provenance["noise"]["severities"]) == (["speckle_noise"], [1, 5])
    assert provenance["noise"]["license"] is None


def test_seeds_that_share_an_archive_are_one_set_and_others_carry_their_study(
    stored: Manifest, pair: Path, tmp_path: Path
) -> None:
    seed = stored.model_copy(update={"output": str(tmp_path / "other")})
    statistics, provenance = list_datasets([stored, seed])
    assert (len(statistics), len(provenance)) == (4, 5)
    small = study(
        tmp_path, pair, tmp_path / "archives", name="small", evaluation_sets=[{"name": "noise", "source": NOISE}]
    )
    ingest(small, LocalEngine(small))
    statistics, _ = list_datasets([stored, small])
    assert statistics["evaluation_set"].to_list() == ["nights", "study/noise", "novel", "clinic", "small/noise"]


def test_absent_incomplete_and_changed_archives_are_refused_together(stored: Manifest, tmp_path: Path) -> None:
    first, second = stored.evaluation_sets[:2]
    changed = first.model_copy(update={"source": [first.source[0].model_copy(update={"seed": 4}), first.source[1]]})
    absent = second.model_copy(update={"name": "absent"})
    with pytest.raises(ProblemsError) as caught:
        list_datasets([stored.model_copy(update={"evaluation_sets": [changed, absent]})])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "source 0 changed in seed" in lines[0]
    assert "run `pipeline ingest`" in lines[1]
    with pytest.raises(ArchiveError, match="run `pipeline ingest`"):
        dataset_statistics({"absent": tmp_path}, {})


def test_archives_alone_suffice_for_both_tables(stored: Manifest) -> None:
    archives = {"novel": Path(stored.archives) / "novel"}
    statistics, provenance = dataset_statistics(archives, {}), dataset_provenance(archives)
    assert statistics["condition"].to_list() == [None]
    assert provenance["kind"].to_list() == ["medimeta"]


def test_the_command_prints_tables_and_json(stored: Manifest, command_line: CommandLine) -> None:
    path = str(Path(stored.output).parent / MANIFEST)
    code, out, err = command_line("datasets", path)
    assert code == 0, err
    assert "1 rejected" in out
    assert "not known 3" in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100
    code, out, _ = command_line("datasets", path, "--json")
    assert code == 0
    found = json.loads(out)
    assert [row["images"] for row in found["statistics"]] == [85, 20, 7, 7]
    assert len(found["provenance"][3]["sha256"]) == 64


def test_tables_cut_nothing_at_80_columns(stored: Manifest) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*datasets_tables(*list_datasets([stored])))
    text = console.export_text()
    assert "…" not in text
    for figure in ("85", "base-to-novel", "40x40", "severity 2"):
        assert figure in text


def test_a_changed_medimeta_set_is_stale(stored: Manifest, tmp_path: Path) -> None:
    make_medimeta(tmp_path / "cells", some_images(8, 40, 40, 3), LABELS[::-1], names=("x", "y", "z"))
    item = stored.evaluation_sets[2]
    moved = item.model_copy(update={"source": [item.source[0].model_copy(update={"root": str(tmp_path)})]})
    with pytest.raises(ProblemsError) as caught:
        ingest(stored.model_copy(update={"evaluation_sets": [moved]}), LocalEngine(stored))
    assert "source 0 (medimeta cells cell class test) changed in" in str(caught.value)
    assert "labels_sha256" in str(caught.value)
