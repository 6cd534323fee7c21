"""The oracle is open_clip's own model on its own preprocessing, with weights loaded or interpolated plainly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from pipeline.errors import OutOfMemoryError
from pipeline.geometry import image_transform, prepare_image
from pipeline.models.class_embeddings import ClassHead, TextTower, logits_by_own_heads
from pipeline.models.scorer import Scorer
from pipeline.models.sources import SourceModels
from pipeline.models.tile_inputs import Upload
from tests.models.factory import (
    TINY,
    TINY_RESNET,
    along,
    blended,
    random_state,
    write_config,
    write_pair,
    write_sources,
)

PROMPTS = ["a photo of a basophil.", "a photo of an eosinophil.", "a photo of a platelet."]
CPU = torch.device("cpu")
TILE = 4
Heads = tuple[ClassHead, ClassHead]
pytestmark = pytest.mark.usefixtures("one_thread")


def make_pair(folder: Path, config: dict[str, Any]) -> SourceModels:
    path = write_config(folder, config)
    return write_pair(folder, path, random_state(path, seed=1), random_state(path, seed=2))


@pytest.fixture(scope="module", params=["transformer", "resnet"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SourceModels:
    return make_pair(tmp_path_factory.mktemp("pair"), TINY if request.param == "transformer" else TINY_RESNET)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 40, 33, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


@pytest.fixture(scope="module")
def pixels(pair: SourceModels, images: list[Image.Image]) -> np.ndarray:
    transform = image_transform(pair.preprocessing.geometry)
    return np.stack([prepare_image(image, transform) for image in images])


@pytest.fixture
def scorer(pair: SourceModels) -> Scorer:
    return Scorer(pair, device=CPU, precision="fp32")


def head_for(models: SourceModels, weights: Sequence[float]) -> ClassHead:
    tokens = models.architecture.tokenize(PROMPTS)
    return TextTower(models, tokens, len(PROMPTS), merged=True, device=CPU).head(weights)


def head_at(pair: SourceModels, lam: float) -> ClassHead:
    return head_for(pair, along(lam))


@pytest.fixture(scope="module")
def heads(pair: SourceModels) -> Heads:
    return head_at(pair, 0.0), head_at(pair, 1.0)


@torch.inference_mode()
def open_clip_logits(pair: SourceModels, images: list[Image.Image], weights: Sequence[float]) -> torch.Tensor:
    model = pair.architecture.build()
    model.load_state_dict(blended([*pair.states.values()], weights))
    preprocess = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False)
    inputs = torch.stack([preprocess(image) for image in images])
    return model.get_logits(inputs, pair.architecture.tokenizer()(PROMPTS))[0]


def test_both_plain_models_score_as_open_clip_does(
    pair: SourceModels, scorer: Scorer, heads: Heads, images: list[Image.Image], pixels: np.ndarray
) -> None:
    found = scorer.source_logits(pixels, heads, tile=TILE)
    for lam, logits in zip((0.0, 1.0), found, strict=True):
        assert logits.dtype == np.float32
        torch.testing.assert_close(
            torch.from_numpy(logits), open_clip_logits(pair, images, along(lam)), rtol=0, atol=1e-5
        )
    assert np.abs(found[0] - found[1]).max() > 0.01, "the two models differ"


@pytest.mark.parametrize("lam", [0.1, 0.5, 0.83])
def test_a_merged_model_scores_as_open_clip_with_interpolated_weights(
    pair: SourceModels, scorer: Scorer, images: list[Image.Image], pixels: np.ndarray, lam: float
) -> None:
    found = scorer.merged_logits(pixels, along(lam), head_at(pair, lam), tile=TILE)
    torch.testing.assert_close(torch.from_numpy(found), open_clip_logits(pair, images, along(lam)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_at_the_ends_merged_logits_are_the_plain_models_to_the_bit(
    pair: SourceModels, heads: Heads, pixels: np.ndarray, precision: str
) -> None:
    scorer = Scorer(pair, device=CPU, precision=precision)
    plain = scorer.source_logits(pixels, heads, tile=TILE)
    scorer.merged_logits(pixels, along(0.5), heads[0], tile=TILE)
    for lam, logits, head in zip((0.0, 1.0), plain, heads, strict=True):
        np.testing.assert_array_equal(scorer.merged_logits(pixels, along(lam), head, tile=TILE), logits)
    assert scorer.segment.merges == 1


def test_low_precision_is_near_float32(pair: SourceModels, scorer: Scorer, heads: Heads, pixels: np.ndarray) -> None:
    coarse = Scorer(pair, device=CPU, precision="bf16").source_logits(pixels, heads, tile=TILE)
    exact = scorer.source_logits(pixels, heads, tile=TILE)
    scale = float(heads[0].logit_scale)
    assert 0 < np.abs(coarse[0] - exact[0]).max() < 0.1 * scale


def test_neither_padding_nor_batch_mates_change_an_image(scorer: Scorer, heads: Heads, pixels: np.ndarray) -> None:
    whole, _ = scorer.source_logits(pixels, heads, tile=TILE)
    order = np.random.default_rng(1).permutation(len(pixels))
    shuffled, _ = scorer.source_logits(pixels[order], heads, tile=TILE)
    np.testing.assert_array_equal(shuffled, whole[order])
    for count in (1, 3, 5):
        padded, _ = scorer.source_logits(pixels[:count], heads, tile=TILE)
        np.testing.assert_array_equal(padded, whole[:count])
    bright = pixels.copy()
    bright[1:] = 255
    np.testing.assert_array_equal(scorer.source_logits(bright, heads, tile=TILE)[0][0], whole[0])


def test_forwards_are_counted_per_model_and_padding_is_not(scorer: Scorer, heads: Heads, pixels: np.ndarray) -> None:
    scorer.source_logits(pixels, heads, tile=TILE)
    scorer.merged_logits(pixels[:5], along(0.5), heads[0], tile=TILE)
    scorer.merged_logits(pixels[:1], along(0.5), heads[0], tile=1)
    assert scorer.forward_calls == {"generalist": 3, "expert": 3, "merged": 3}
    assert scorer.forward_images == {"generalist": 10, "expert": 10, "merged": 6}


def test_no_forward_sees_another_shape_than_the_tile(
    pair: SourceModels, scorer: Scorer, heads: Heads, pixels: np.ndarray
) -> None:
    shapes = []
    for tower in (*scorer.segment.ends, scorer.segment.at(along(0.5))):
        tower.register_forward_pre_hook(lambda _module, inputs: shapes.append(tuple(inputs[0].shape)))
    scorer.source_logits(pixels, heads, tile=TILE)
    scorer.merged_logits(pixels[:7], along(0.5), heads[0], tile=TILE)
    assert set(shapes) == {(TILE, 3, *pixels.shape[1:3])}


def test_pixels_are_normalised_as_totensor_and_normalize_do_to_the_bit(scorer: Scorer, pair: SourceModels) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([values, values.T, values[::-1]], axis=2)
    expected = normalize(to_tensor(Image.fromarray(image)), pair.preprocessing.mean, pair.preprocessing.std)
    inputs = scorer._inputs(image[None], 2)
    assert torch.equal(inputs[0], expected)
    assert inputs.shape == (2, 3, 16, 16)


def test_the_pixels_given_are_left_as_they_are(scorer: Scorer, heads: Heads, pixels: np.ndarray) -> None:
    before = pixels.copy()
    scorer.source_logits(pixels, heads, tile=len(pixels))
    np.testing.assert_array_equal(pixels, before)


def test_two_scorers_of_one_pair_share_no_merged_weights(pair: SourceModels, pixels: np.ndarray) -> None:
    first, second = (Scorer(pair, device=CPU, precision="fp32") for _ in range(2))
    head = head_at(pair, 0.2)
    expected = first.merged_logits(pixels, along(0.2), head, tile=TILE)
    second.merged_logits(pixels, along(0.9), head, tile=TILE)
    np.testing.assert_array_equal(first.merged_logits(pixels, along(0.2), head, tile=TILE), expected)
    assert (first.segment.merges, second.segment.merges) == (1, 1)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> SourceModels:
    folder = tmp_path_factory.mktemp("sites")
    path = write_config(folder)
    return write_sources(folder, path, [random_state(path, seed) for seed in (1, 2, 3)])


@pytest.fixture(scope="module")
def site_pixels(sites: SourceModels, images: list[Image.Image]) -> np.ndarray:
    transform = image_transform(sites.preprocessing.geometry)
    return np.stack([prepare_image(image, transform) for image in images])


CORNERS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def test_three_sources_and_their_merge_score_as_open_clip_does(
    sites: SourceModels, images: list[Image.Image], site_pixels: np.ndarray
) -> None:
    scorer = Scorer(sites, device=CPU, precision="fp32")
    found = scorer.source_logits(site_pixels, [head_for(sites, corner) for corner in CORNERS], tile=TILE)
    for corner, logits in zip(CORNERS, found, strict=True):
        expected = open_clip_logits(sites, images, corner)
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-5)
    for weights in ((0.2, 0.3, 0.5), (0.6, 0.0, 0.4)):
        merged = scorer.merged_logits(site_pixels, weights, head_for(sites, weights), tile=TILE)
        expected = open_clip_logits(sites, images, weights)
        torch.testing.assert_close(torch.from_numpy(merged), expected, rtol=0, atol=1e-5)
        assert min(np.abs(merged - logits).max() for logits in found) > 0.01, "the merge is none of its sources"
    assert scorer.forward_calls == {"site-0": 3, "site-1": 3, "site-2": 3, "merged": 6}
    assert scorer.forward_images == {"site-0": 10, "site-1": 10, "site-2": 10, "merged": 20}


def test_at_the_corners_merged_logits_are_the_sources_to_the_bit(sites: SourceModels, site_pixels: np.ndarray) -> None:
    scorer = Scorer(sites, device=CPU, precision="fp32")
    heads = [head_for(sites, corner) for corner in CORNERS]
    plain = scorer.source_logits(site_pixels, heads, tile=TILE)
    for corner, head, logits in zip(CORNERS, heads, plain, strict=True):
        np.testing.assert_array_equal(scorer.merged_logits(site_pixels, corner, head, tile=TILE), logits)
    assert scorer.segment.merges == 0


def test_one_source_alone_scores_as_it_does_beside_others(sites: SourceModels, site_pixels: np.ndarray) -> None:
    """The result of a static merge is a single model in the sources' architecture."""
    single = sites.with_single("soup", sites.states["site-1"])
    head = head_for(single, (1.0,))
    alone = Scorer(single, device=CPU, precision="fp32").source_logits(site_pixels, [head], tile=TILE)
    heads = [head_for(sites, corner) for corner in CORNERS]
    beside = Scorer(sites, device=CPU, precision="fp32").source_logits(site_pixels, heads, tile=TILE)
    np.testing.assert_array_equal(alone[0], beside[1])


def test_merging_ahead_changes_no_bit(pair: SourceModels, pixels: np.ndarray) -> None:
    plain, ahead = (Scorer(pair, device=CPU, precision="fp32", merge_ahead=way) for way in (False, True))
    lambdas = [0.0, 0.2, 0.2, 0.7, 1.0, 0.4]
    for lam, following in zip(lambdas, [*lambdas[1:], None], strict=True):
        head = head_at(pair, lam)
        expected = plain.merged_logits(pixels, along(lam), head, tile=TILE)
        after = None if following is None else along(following)
        found = ahead.merged_logits(pixels, along(lam), head, tile=TILE, following=after)
        np.testing.assert_array_equal(found, expected)
    assert ahead.segment.merges == plain.segment.merges == 3


@pytest.mark.parametrize(
    ("what", "operation", "purpose"),
    [
        ("scorer", "zeros", "hold the image towers"),
        ("merge", "lerp", "merge"),
        ("exact", "equal", "make the exact form"),
    ],
)
def test_memory_that_runs_out_beside_the_tiles_is_one_line(
    pair: SourceModels, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch, what: str, operation: str, purpose: str
) -> None:
    scorer, head = Scorer(pair, device=CPU, precision="fp32"), head_at(pair, 0.5)
    ways = {
        "scorer": lambda: Scorer(pair, device=CPU, precision="fp32"),
        "merge": lambda: scorer.merged_logits(pixels, along(0.5), head, tile=TILE),
        "exact": lambda: scorer.per_sample_tower(("generalist", "expert")),
    }

    def fail(*_arguments: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch, operation, fail)
    with pytest.raises(OutOfMemoryError, match=rf"memory of cpu does not suffice to {purpose} \(CUDA out of memory"):
        ways[what]()


def test_convolutions_keep_the_precision_that_is_asked_for(pair: SourceModels) -> None:
    Scorer(pair, device=CPU, precision="fp32")
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("cosine", [True, False])
def test_logits_by_own_heads_in_one_product_are_those_of_head_by_head(cosine: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = [
        ClassHead(torch.randn(5, 16, generator=generator), 10.0 + i, torch.randn(5, generator=generator), cosine)
        for i in range(7)
    ]
    features = torch.randn(7, 16, generator=generator)
    expected = torch.cat([head.logits(features[i : i + 1]) for i, head in enumerate(heads)])
    found = logits_by_own_heads(features, heads, Upload(CPU))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_cuda_all_ways_score_as_on_the_cpu(
    pair: SourceModels, scorer: Scorer, heads: Heads, pixels: np.ndarray, precision: str
) -> None:
    device = torch.device("cuda")
    gpu = Scorer(pair, device=device, precision=precision)
    lambdas = np.linspace(0.1, 0.9, len(pixels)).tolist()
    own = [head_at(pair, lam) for lam in lambdas]
    ways = {
        "source": lambda which: np.stack(which.source_logits(pixels, heads, tile=TILE)),
        "merged": lambda which: np.concatenate(
            [
                which.merged_logits(pixels[i : i + 5], along(0.3 + i / 20), heads[0], tile=TILE, following=along(0.55))
                for i in (0, 5)
            ]
        ),
        "per-sample": lambda which: which.per_sample_logits(
            pixels, lambdas, own, ends=("generalist", "expert"), tile=TILE
        ),
    }
    for way in ways.values():
        expected = way(scorer)
        tolerance = (1e-4 if precision == "fp32" else 0.1) * np.abs(expected).max()
        np.testing.assert_allclose(way(gpu), expected, rtol=0, atol=tolerance)
    assert gpu.segment.merges == 2
