"""Corruptions made here: MedMNIST-C's own where they are deterministic, seeded where not, whatever is read when."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.archives.corrupt import CorruptSource
from pipeline.archives.corruptions import OPERATORS, corrupt_image
from pipeline.archives.severities import FOLDS, MEDMNIST_C, PARAMETER_SETS, parameters_of
from pipeline.archives.source import Source, SourceImage
from pipeline.archives.synthetic import SyntheticSource
from pipeline.errors import SourceError
from pipeline.manifest.images import CorruptSource as CorruptSpec
from pipeline.manifest.images import MedMNISTCSource
from pipeline.stages.sources import open_source
from tests.archives.factory import PatchedSource

NAMES = list(OPERATORS)
CELLS = SyntheticSource(12, 4, size=32)


def corrupted(
    base: Source = CELLS, names: list[str] | None = None, severities: tuple[int, ...] = (1, 2, 3, 4, 5), **settings: Any
) -> CorruptSource:
    chosen = {"parameters": "imagenet-c", "seed": 0, **settings}
    return CorruptSource(base, names or NAMES, severities, **chosen)


def pixels(item: SourceImage) -> np.ndarray:
    assert item.image is not None
    return np.asarray(item.image, dtype=np.int16)


@pytest.fixture(scope="module")
def everything() -> list[SourceImage]:
    return list(corrupted().read(0, len(corrupted())))


def test_rows_stand_by_corruption_then_severity_then_base_image(everything: list[SourceImage]) -> None:
    clean = list(CELLS.read(0, 12))
    expected = list(product(NAMES, (1, 2, 3, 4, 5), clean))
    assert len(everything) == len(corrupted()) == len(expected)
    for index, (item, (name, severity, base)) in enumerate(zip(everything, expected, strict=True)):
        assert item.index == index
        assert (item.corruption, item.severity, item.label) == (name, severity, base.label)
        assert item.sample_id == f"{base.sample_id}/{name}/{severity}"
        assert item.group_id == base.group_id
        assert pixels(item).shape == (32, 32, 3)


def test_an_image_is_the_same_in_any_order_range_and_selection(everything: list[SourceImage]) -> None:
    source = corrupted()
    generator = np.random.default_rng(0)
    for _ in range(8):
        start, stop = np.sort(generator.integers(0, len(source) + 1, 2))
        for item in source.read(int(start), min(int(stop), int(start) + 20)):
            np.testing.assert_array_equal(pixels(item), pixels(everything[item.index]))
    by_id = {item.sample_id: item for item in everything}
    for item in corrupted(names=["shot_noise", "gaussian_noise"], severities=(3,)).read(0, 24):
        np.testing.assert_array_equal(pixels(item), pixels(by_id[item.sample_id]))


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"])
def test_noise_follows_the_seed_and_differs_between_images(name: str) -> None:
    flat = FlatSource(Image.new("RGB", (16, 16), (120, 120, 120)))
    first, second = corrupted(flat, [name], (2,)).read(0, 2)
    assert (pixels(first) != pixels(second)).any()
    (again,) = corrupted(flat, [name], (2,)).read(0, 1)
    (other,) = corrupted(flat, [name], (2,), seed=1).read(0, 1)
    np.testing.assert_array_equal(pixels(first), pixels(again))
    assert (pixels(first) != pixels(other)).any()


@pytest.mark.parametrize("name", NAMES)
def test_each_severity_hurts_more_than_the_one_before(everything: list[SourceImage], name: str) -> None:
    clean = [pixels(item) for item in CELLS.read(0, 12)]
    changes = [
        np.mean(
            [
                np.abs(pixels(item) - clean[item.index % 12]).mean()
                for item in everything
                if (item.corruption, item.severity) == (name, severity)
            ]
        )
        for severity in (1, 2, 3, 4, 5)
    ]
    assert changes[0] > 0
    assert (np.diff(changes) > 0).all(), changes


@pytest.mark.parametrize(
    ("dataset", "name"), [(d, n) for d in ("breastmnist", "retinamnist") for n in FOLDS["digital"]]
)
def test_digital_corruptions_are_medmnist_cs_to_the_pixel(data_root: Path, dataset: str, name: str) -> None:
    ours, released = sources_of(data_root, dataset, name)
    assert len(ours) == len(released)
    for start in range(0, len(ours), 97):
        (made,), (read,) = ours.read(start, start + 1), released.read(start, start + 1)
        assert (made.group_id, made.severity, made.label) == (read.group_id, read.severity, read.label)
        np.testing.assert_array_equal(pixels(made), pixels(read))


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("breastmnist", "speckle_noise"), ("retinamnist", "speckle_noise"), ("retinamnist", "gaussian_noise")],
)
@pytest.mark.parametrize("severity", [1, 5])
def test_noise_is_as_strong_as_medmnist_cs(data_root: Path, dataset: str, name: str, severity: int) -> None:
    ours, released = sources_of(data_root, dataset, name, severities=[severity])
    clean = open_source(CorruptSpec.model_validate(spec(dataset, name)).of, str(data_root))
    base = [pixels(item) for item in clean.read(0, 100)]
    strengths = [
        np.mean([np.abs(pixels(item) - base[item.index]).mean() for item in source.read(0, 100)])
        for source in (ours, released)
    ]
    assert strengths[0] == pytest.approx(strengths[1], rel=0.03)


def spec(dataset: str, name: str, **settings: Any) -> dict[str, Any]:
    of = {"kind": "medmnist", "flag": dataset, "split": "test"}
    return {"kind": "corrupt", "of": of, "corruptions": [name], "parameters": dataset, **settings}


def sources_of(data_root: Path, dataset: str, name: str, **settings: Any) -> tuple[Source, Source]:
    ours = CorruptSpec.model_validate(spec(dataset, name, **settings))
    released = MedMNISTCSource(kind="medmnist-c", dataset=dataset, corruptions=[name], **settings)
    return open_source(ours, str(data_root)), open_source(released, str(data_root))


@dataclass(frozen=True)
class FlatSource:
    """Two listings of one picture, without a group of their own."""

    image: Image.Image
    class_names: tuple[str, ...] = ("a", "b")

    @property
    def identity(self) -> dict[str, Any]:
        return {"kind": "flat"}

    def __len__(self) -> int:
        return 2

    def read(self, start: int, stop: int) -> Iterator[SourceImage]:
        for index in range(start, stop):
            yield SourceImage(index, f"flat/{index}", None, None, "flat", self.image, None)


def test_the_group_is_the_base_images_own_or_its_sample_id() -> None:
    flat = FlatSource(Image.new("L", (8, 8), 40))
    assert [item.group_id for item in corrupted(flat, ["pixelate"], (1, 3)).read(0, 4)] == ["flat/0", "flat/1"] * 2


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        # Deviation of an intensity of 0.5 under ImageNet-C's severity 1, in levels of 255.
        ("gaussian_noise", 255 * 0.08),
        ("speckle_noise", 255 * 0.5 * 0.15),
        ("shot_noise", 255 * np.sqrt(0.5 / 60)),
        ("impulse_noise", 255 * 0.5 * np.sqrt(0.03)),
    ],
)
def test_noise_has_the_published_deviation(name: str, moment: float) -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    (parameter, *_) = parameters_of("imagenet-c")[name]
    noisy = np.asarray(corrupt_image(grey, name, parameter, np.random.default_rng(0)), dtype=np.float64)
    assert noisy.std() == pytest.approx(moment, rel=0.03)
    assert noisy.mean() == pytest.approx(128, abs=1)


def test_blur_spreads_a_point_by_its_deviation() -> None:
    point = np.zeros((41, 41, 3), np.uint8)
    point[18:23, 18:23] = 255
    blurred = np.asarray(corrupt_image(Image.fromarray(point), "gaussian_blur", 2, np.random.default_rng()), np.float64)
    profile = blurred[..., 0].sum(axis=0)
    variance = np.average((np.arange(41) - 20.0) ** 2, weights=profile)
    # A box of five pixels has variance 2.
    assert variance == pytest.approx(2 + 4, rel=0.05)


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", "L"), ("RGB", "RGB"), ("RGBA", "RGB"), ("P", "RGB"), ("1", "RGB")]
)
@pytest.mark.parametrize("name", NAMES)
def test_any_mode_and_size_can_be_corrupted(name: str, mode: str, expected: str) -> None:
    image = Image.radial_gradient("L").resize((3, 5)).convert(mode)
    for parameter in parameters_of("imagenet-c")[name]:
        made = corrupt_image(image, name, parameter, np.random.default_rng(0))
        assert (made.size, made.mode) == ((3, 5), "L" if mode == "L" else "RGB")


def test_a_base_image_with_a_problem_stays_one() -> None:
    source = corrupted(PatchedSource(CELLS, refused=(3,)), ["pixelate"], (2, 4))
    found = {item.sample_id: item.problem for item in source.read(0, len(source)) if item.image is None}
    assert found == {f"synthetic/a/4/3/pixelate/{severity}": "label 9 is outside the 4 classes" for severity in (2, 4)}


def test_a_picture_that_cannot_be_decoded_is_a_problem_of_its_own() -> None:
    written = BytesIO()
    Image.effect_noise((64, 64), 50).save(written, "PNG")
    torn = Image.open(BytesIO(written.getvalue()[:2000]))
    first, second = corrupted(FlatSource(torn), ["jpeg_compression"], (1,)).read(0, 2)
    for item in (first, second):
        assert item.image is None
        assert item.problem is not None
        assert item.problem.startswith("OSError: ")


def test_a_stratified_part_is_the_same_whether_asked_of_the_base_or_of_all(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", test_images=images, test_labels=np.arange(30) % 3)
    of = {"kind": "npz", "path": str(tmp_path / "x.npz"), "split": "test", "class_names": ["a", "b", "c"]}
    part = {"images": 7, "seed": 2}
    whole = {"kind": "corrupt", "of": of, "corruptions": ["pixelate"]}
    outside, inside = (
        open_source(CorruptSpec.model_validate(changed), None)
        for changed in (whole | {"stratified": part}, whole | {"of": of | {"stratified": part}})
    )
    groups = [[item.group_id for item in source.read(0, len(source))] for source in (outside, inside)]
    assert groups[0] == groups[1]
    assert len(groups[0]) == 35
    assert groups[0] == groups[0][:7] * 5
    assert outside.identity == inside.identity
    with pytest.raises(SourceError, match=r"stratified\.images is 31, but there are only 30"):
        open_source(CorruptSpec.model_validate(whole | {"stratified": {"images": 31}}), None)


def test_identity_says_that_these_are_no_released_files() -> None:
    identity = corrupted(names=["pixelate"], severities=(1, 2)).identity
    assert identity["kind"] == "corrupt"
    assert identity["of"] == CELLS.identity
    for change in ({"seed": 1}, {"parameters": "bloodmnist"}, {"severities": (1,)}, {"names": ["jpeg_compression"]}):
        assert corrupted(**{"names": ["pixelate"], "severities": (1, 2), **change}).identity != identity


def test_every_published_strength_is_for_a_corruption_that_can_be_made() -> None:
    assert set(parameters_of("imagenet-c")) == set(OPERATORS)
    for name in PARAMETER_SETS:
        for corruption, values in parameters_of(name).items():
            assert corruption in OPERATORS
            assert len(values) == 5
            assert len(set(values)) == 5
    in_folds = {corruption for members in FOLDS.values() for corruption in members}
    assert {corruption for published in MEDMNIST_C.values() for corruption in published} == in_folds
