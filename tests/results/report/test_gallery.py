import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.archives.archive import Archive, create_or_open
from pipeline.archives.ingest import append_segment, write_part
from pipeline.archives.synthetic import SyntheticSource
from pipeline.geometry import Geometry
from pipeline.results.report.gallery import LARGEST_SIDE, Answer, disagreements
from tests.archives.factory import ingest

from .factory import PairSet, divergence, pair_run, predict, random_set

ROWS = 40


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archives")
    ingest(root / "cells", SyntheticSource(ROWS, 1))
    return root


def cells(archives: Path, **fields: object) -> PairSet:
    archive = Archive.open(archives / "cells")
    ids = [name for part in range(archive.parts) for name in archive.samples(part)["sample_id"].to_pylist()]
    return random_set("cells", ROWS, seed=5, sample_ids=ids, **fields)  # type: ignore[arg-type]


def picture(uri: str | None) -> np.ndarray:
    assert uri is not None
    prefix = "data:image/png;base64,"
    assert uri.startswith(prefix)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix)))))


def test_the_largest_divergence_comes_first_with_its_own_pixels(tmp_path: Path, archives: Path) -> None:
    item = cells(archives)
    run = pair_run(tmp_path, [item], cuts=3, manifest={"archives": str(archives)})
    found = disagreements([run], 5)
    js = divergence(item.generalist, item.expert)
    assert [entry.row for entry in found] == np.argsort(-js)[:5].tolist()
    assert [entry.js for entry in found] == pytest.approx(sorted(js, reverse=True)[:5], abs=1e-6)
    pixels = Archive.open(archives / "cells").read(np.array([entry.row for entry in found]))
    for entry, expected in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(picture(entry.image), expected)
        assert entry.missing is None


def test_answers_are_those_of_the_models_and_of_the_merged_one(tmp_path: Path, archives: Path) -> None:
    item = cells(archives)
    run = pair_run(tmp_path, [item], manifest={"archives": str(archives)})
    probabilities = np.random.default_rng(2).dirichlet((1, 1, 1), ROWS)
    for method in ("dawin", "t3-batch", "x-entropy-ratio", "soup", "entropy-adaptive"):
        predict(run, method, "cells", np.eye(3)[np.zeros(ROWS, int)], item.labels)
    predict(run, "t3", "cells", probabilities, item.labels, order=np.arange(ROWS)[::-1])
    (entry,) = disagreements([run], 1)
    row = entry.row
    exponents = np.exp(item.expert[row].astype(float))
    names, label = item.class_names, item.labels[row]
    assert label is not None
    assert entry.expert.class_name == names[int(exponents.argmax())]
    assert entry.expert.probability == pytest.approx(exponents.max() / exponents.sum(), abs=1e-6)
    assert entry.true_class == names[label]
    assert entry.method == "t3"
    assert entry.lam == pytest.approx(row / 100)
    assert entry.merged is not None
    assert entry.merged.class_name == names[int(probabilities[row].argmax())]
    assert entry.merged.probability == pytest.approx(probabilities[row].max(), abs=1e-6)
    assert entry.description.startswith(f"Image {entry.sample_id} of cells, in-domain, true class {names[label]};")


def test_without_t3_the_first_rule_that_needs_no_labels_answers(tmp_path: Path) -> None:
    item = random_set("cells", 6, labelled=False)
    run = pair_run(tmp_path, [item], manifest={"methods": ["x-entropy-ratio", "soup", "dawin-batch", "dawin"]})
    for method in ("x-entropy-ratio", "soup", "dawin", "dawin-batch"):
        predict(run, method, "cells", np.full((6, 3), 1 / 3), item.labels)
    (entry,) = disagreements([run], 1)
    assert entry.method == "dawin-batch"
    assert entry.true_class is None
    assert ", no label;" in entry.description


def test_without_any_method_the_plain_answers_remain(tmp_path: Path) -> None:
    (entry,) = disagreements([pair_run(tmp_path, [random_set("cells", 6)])], 1)
    assert (entry.method, entry.lam, entry.merged) == (None, None, None)
    assert isinstance(entry.generalist, Answer)


def test_one_picture_for_each_cluster_over_all_sets(tmp_path: Path) -> None:
    base = random_set("clean", 8, seed=1)
    groups = [f"clean/test/{row // 2}" for row in range(8)]
    corrupted = random_set("corrupted", 8, seed=2, groups=groups)
    run = pair_run(tmp_path, [base, corrupted])
    found = disagreements([run], 100)
    clusters = [entry.sample_id if entry.evaluation_set == "clean" else groups[entry.row] for entry in found]
    assert len(clusters) == len(set(clusters)) == 8
    js = {("clean", row): value for row, value in enumerate(divergence(base.generalist, base.expert))}
    js |= {("corrupted", row): value for row, value in enumerate(divergence(corrupted.generalist, corrupted.expert))}
    assert found[0].js == pytest.approx(max(js.values()), abs=1e-6)
    assert [entry.js for entry in found] == sorted((entry.js for entry in found), reverse=True)


def test_each_set_may_have_its_own_largest(tmp_path: Path) -> None:
    run = pair_run(tmp_path, [random_set("one", 20, seed=1), random_set("two", 20, seed=2)])
    found = disagreements([run], 3, per_set=True)
    assert [entry.evaluation_set for entry in found] == ["one"] * 3 + ["two"] * 3


def test_equal_divergence_goes_by_set_and_row(tmp_path: Path) -> None:
    same = np.zeros((5, 3), np.float32)
    run = pair_run(tmp_path, [PairSet(name, same, same, [0] * 5) for name in ("one", "two")])
    assert [(entry.evaluation_set, entry.row) for entry in disagreements([run], 7)] == [
        *(("one", row) for row in range(5)),
        ("two", 0),
        ("two", 1),
    ]


def test_an_archive_that_is_gone_costs_the_pictures_only(tmp_path: Path) -> None:
    run = pair_run(tmp_path, [random_set("cells", 6)], manifest={"archives": str(tmp_path / "gone")})
    (entry,) = disagreements([run], 1)
    assert entry.image is None
    assert entry.missing is not None
    assert "not an archive (no archive.json)" in entry.missing
    assert "\n" not in entry.missing


def test_pixels_that_are_gone_are_said_to_be(tmp_path: Path, archives: Path) -> None:
    shutil.copytree(archives / "cells", tmp_path / "cells")
    shutil.rmtree(tmp_path / "cells" / "images.zarr")
    run = pair_run(tmp_path / "run", [cells(archives)], manifest={"archives": str(tmp_path)})
    (entry,) = disagreements([run], 1)
    assert entry.image is None
    assert entry.missing


def test_an_archive_made_again_shows_no_wrong_picture(tmp_path: Path, archives: Path) -> None:
    item = random_set("cells", ROWS, seed=5)
    run = pair_run(tmp_path, [item], manifest={"archives": str(archives)})
    (entry,) = disagreements([run], 1)
    assert entry.image is None
    assert entry.missing is not None
    assert "holds another image at row" in entry.missing


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    source = SyntheticSource(4, 1)
    archive = create_or_open(
        tmp_path / "cells", class_names=source.class_names, geometry=Geometry(224, 112), part_rows=4
    )
    append_segment(archive, source)
    write_part(archive, 0, source)
    ids = archive.samples(0)["sample_id"].to_pylist()
    run = pair_run(
        tmp_path / "run", [random_set("cells", 4, sample_ids=ids)], cuts=1, manifest={"archives": str(tmp_path)}
    )
    (entry,) = disagreements([run], 1)
    assert picture(entry.image).shape == (LARGEST_SIDE, LARGEST_SIDE // 2, 3)
