"""The main job on public images: BreastMNIST (grey, official) and PBC-28 (colour, class names of one's own)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from PIL import Image

from pipeline.archives.archive import Archive
from pipeline.drivers.ingest import ingest
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    MANIFEST,
    MERGING,
    METHODS,
    assert_same_files,
    predictions_folder,
    read_evidence,
    read_predictions,
    run_both,
    run_infer,
    study,
)
from tests.main_job.test_evidence import coefficients_by_the_paper, read_samples

CELL_NAMES = [
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
]
BREAST, PBC = "breastmnist-test", "pbc28-val"
SIZES = {BREAST: 156, PBC: 1712}
FILES = {BREAST: ("breastmnist.npz", "test"), PBC: ("pbcblood.npz", "val")}


def sets_of(data_root: Path) -> list[dict[str, Any]]:
    path = data_root / "medmnist" / "pbcblood.npz"
    npz = {"kind": "npz", "path": str(path), "split": "val", "class_names": CELL_NAMES}
    return [
        {"name": BREAST, "source": {"kind": "medmnist", "flag": "breastmnist", "split": "test"}},
        {"name": PBC, "source": npz, "condition": "base-to-novel"},
    ]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory, pair: Path, data_root: Path) -> Manifest:
    """A finished run over both sets. Not to be written to."""
    folder = tmp_path_factory.mktemp("hospital")
    settings: dict[str, Any] = {"evaluation_sets": sets_of(data_root), "data_root": str(data_root), "part_rows": 512}
    manifest = study(folder, pair, folder / "archives", grouping={"window": {"rows": 1024}}, **settings)
    summary = ingest(manifest, LocalEngine(manifest))
    assert (summary.samples, summary.rejected) == (sum(SIZES.values()), 0)
    return run_both(manifest)


@pytest.mark.parametrize("name", [BREAST, PBC])
def test_the_archive_holds_what_open_clip_would_feed(hospital: Manifest, data_root: Path, name: str) -> None:
    file, split = FILES[name]
    with np.load(data_root / "medmnist" / file) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
    archive = Archive.open(Path(hospital.archives) / name)
    transform = open_clip.image_transform(28, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    rows = np.linspace(0, len(images) - 1, 40).astype(np.int64)
    expected = [np.rint(transform(Image.fromarray(images[row])).permute(1, 2, 0).numpy() * 255) for row in rows]
    np.testing.assert_array_equal(archive.read(rows), np.array(expected, dtype=np.uint8))
    assert read_evidence(hospital, name)["label"].to_pylist() == labels.tolist()


@pytest.mark.parametrize("name", [BREAST, PBC])
def test_every_method_answers_every_image_once(hospital: Manifest, name: str) -> None:
    for method in METHODS:
        predictions = read_predictions(hospital, method, name)
        assert predictions["row"].to_pylist() == list(range(SIZES[name]))
        sums = np.array(predictions["probabilities"].to_pylist()).sum(axis=1)
        np.testing.assert_allclose(sums, 1, atol=1e-5)


@pytest.mark.parametrize("name", [BREAST, PBC])
def test_coefficients_equal_the_papers_formulas_on_real_images(hospital: Manifest, name: str) -> None:
    samples, expected = read_samples(hospital, name), coefficients_by_the_paper(read_evidence(hospital, name), {})
    clear = ~expected["near"]
    np.testing.assert_allclose(samples["lambda"].to_numpy()[clear], expected["lambda"][clear], rtol=0, atol=1e-6)
    assert np.array_equal(np.array(samples["branch"].to_pylist())[clear], expected["branch"][clear])


def test_online_equals_precomputed_on_real_images(
    hospital: Manifest, pair: Path, data_root: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"evaluation_sets": sets_of(data_root)[:1], "data_root": str(data_root)}
    online = study(
        tmp_path, pair, Path(hospital.archives), grouping={"window": {"rows": 1024}}, part_rows=512, **settings
    )
    run_infer(online, online=True)
    for method in MERGING:
        folders = (predictions_folder(m, method, BREAST) for m in (online, hospital))
        assert_same_files(*({p.name: p.read_bytes() for p in folder.glob("part-*")} for folder in folders))


def test_the_run_is_evaluated_and_reported(hospital: Manifest, command_line: CommandLine) -> None:
    code, out, _ = command_line("evaluate", hospital.output, "--json")
    assert code == 0
    assert BREAST in out
    assert PBC in out
    json.loads(out)
    assert (Path(hospital.output) / "metrics.parquet").is_file()
    code, out, _ = command_line("report", hospital.output)
    assert code == 0
    page = Path(out.strip()).read_text()
    assert PBC in page
    assert "<script src=" not in page


def test_the_manifest_is_valid_before_and_after_the_work(
    hospital: Manifest, pair: Path, data_root: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    settings: dict[str, Any] = {"evaluation_sets": sets_of(data_root), "data_root": str(data_root), "part_rows": 512}
    study(tmp_path, pair, tmp_path / "archives", **settings)
    code, out, err = command_line("validate", str(tmp_path / MANIFEST))
    assert code == 0, err
    assert out.count("not ingested yet") == 2
    study(tmp_path, pair, Path(hospital.archives), **settings)
    code, out, err = command_line("validate", str(tmp_path / MANIFEST))
    assert code == 0, err
    assert "archive has 4 parts, 0 missing, 0 sources to append" in out
