"""The oracle is open_clip's own model on its own preprocessing, with weights loaded or interpolated plainly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from pipeline.geometry import image_transform, prepare_image
from pipeline.models.class_embeddings import ClassHead, TextTower
from pipeline.models.pair import Pair, load_pair
from pipeline.models.scorer import Scorer
from tests.models.factory import TINY, TINY_RESNET, interpolated, random_state, write_checkpoint, write_config

PROMPTS = ["a photo of a basophil.", "a photo of an eosinophil.", "a photo of a platelet."]
CPU = torch.device("cpu")
TILE = 4
Heads = tuple[ClassHead, ClassHead]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """What a worker has by default; on tiny models a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_pair(folder: Path, config: dict[str, Any]) -> Pair:
    path = write_config(folder, config)
    ends = [write_checkpoint(folder / f"{seed}.safetensors", random_state(path, seed)) for seed in (1, 2)]
    return load_pair(str(path), *map(str, ends))


@pytest.fixture(scope="module", params=["transformer", "resnet"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"), TINY if request.param == "transformer" else TINY_RESNET)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 40, 33, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


@pytest.fixture(scope="module")
def pixels(pair: Pair, images: list[Image.Image]) -> np.ndarray:
    transform = image_transform(pair.preprocessing.geometry)
    return np.stack([prepare_image(image, transform) for image in images])


@pytest.fixture
def scorer(pair: Pair) -> Scorer:
    return Scorer(pair, device=CPU, precision="fp32")


def head_at(pair: Pair, lam: float) -> ClassHead:
    return TextTower(pair, merged=True, device=CPU).head(lam, pair.architecture.tokenize(PROMPTS), len(PROMPTS))


@pytest.fixture(scope="module")
def heads(pair: Pair) -> Heads:
    return head_at(pair, 0.0), head_at(pair, 1.0)


@torch.inference_mode()
def open_clip_logits(pair: Pair, images: list[Image.Image], lam: float) -> torch.Tensor:
    model = pair.architecture.build()
    model.load_state_dict(interpolated(dict(pair.generalist), dict(pair.expert), lam))
    preprocess = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False)
    inputs = torch.stack([preprocess(image) for image in images])
    return model.get_logits(inputs, pair.architecture.tokenizer()(PROMPTS))[0]


def test_both_plain_models_score_as_open_clip_does(
    pair: Pair, scorer: Scorer, heads: Heads, images: list[Image.Image], pixels: np.ndarray
) -> None:
    found = scorer.pair_logits(pixels, heads, tile=TILE)
    for lam, logits in zip((0.0, 1.0), found, strict=True):
        assert logits.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(logits), open_clip_logits(pair, images, lam), rtol=0, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01, "the two models differ"


@pytest.mark.parametrize("lam", [0.1, 0.5, 0.83])
def test_a_merged_model_scores_as_open_clip_with_interpolated_weights(
    pair: Pair, scorer: Scorer, images: list[Image.Image], pixels: np.ndarray, lam: float
) -> None:
    found = scorer.merged_logits(pixels, lam, head_at(pair, lam), tile=TILE)
    torch.testing.assert_close(torch.from_numpy(found), open_clip_logits(pair, images, lam), rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_at_the_ends_merged_logits_are_the_plain_models_to_the_bit(
    pair: Pair, heads: Heads, pixels: np.ndarray, precision: str
) -> None:
    scorer = Scorer(pair, device=CPU, precision=precision)
    plain = scorer.pair_logits(pixels, heads, tile=TILE)
    scorer.merged_logits(pixels, 0.5, heads[0], tile=TILE)
    for lam, logits, head in zip((0.0, 1.0), plain, heads, strict=True):
        np.testing.assert_array_equal(scorer.merged_logits(pixels, lam, head, tile=TILE), logits)
    assert scorer.segment.merges == 1


def test_low_precision_is_near_float32(pair: Pair, scorer: Scorer, heads: Heads, pixels: np.ndarray) -> None:
    coarse = Scorer(pair, device=CPU, precision="bf16").pair_logits(pixels, heads, tile=TILE)
    exact = scorer.pair_logits(pixels, heads, tile=TILE)
    scale = float(heads[0].logit_scale)
    assert 0 < np.abs(coarse[0] - exact[0]).max() < 0.1 * scale


def test_neither_padding_nor_batch_mates_change_an_image(scorer: Scorer, heads: Heads, pixels: np.ndarray) -> None:
    whole, _ = scorer.pair_logits(pixels, heads, tile=TILE)
    order = np.random.default_rng(1).permutation(len(pixels))
    shuffled, _ = scorer.pair_logits(pixels[order], heads, tile=TILE)
    np.testing.assert_array_equal(shuffled, whole[order])
    for count in (1, 3, 5):
        padded, _ = scorer.pair_logits(pixels[:count], heads, tile=TILE)
        np.testing.assert_array_equal(padded, whole[:count])
    bright = pixels.copy()
    bright[1:] = 255
    np.testing.assert_array_equal(scorer.pair_logits(bright, heads, tile=TILE)[0][0], whole[0])


def test_forwards_are_counted_per_model_and_padding_is_not(scorer: Scorer, heads: Heads, pixels: np.ndarray) -> None:
    scorer.pair_logits(pixels, heads, tile=TILE)
    scorer.merged_logits(pixels[:5], 0.5, heads[0], tile=TILE)
    scorer.merged_logits(pixels[:1], 0.5, heads[0], tile=1)
    assert scorer.forward_calls == {"generalist": 3, "expert": 3, "merged": 3}
    assert scorer.forward_images == {"generalist": 10, "expert": 10, "merged": 6}


def test_no_forward_sees_another_shape_than_the_tile(
    pair: Pair, scorer: Scorer, heads: Heads, pixels: np.ndarray
) -> None:
    shapes = []
    for tower in (scorer.segment.generalist, scorer.segment.expert, scorer.segment.at(0.5)):
        tower.register_forward_pre_hook(lambda _module, inputs: shapes.append(tuple(inputs[0].shape)))
    scorer.pair_logits(pixels, heads, tile=TILE)
    scorer.merged_logits(pixels[:7], 0.5, heads[0], tile=TILE)
    assert set(shapes) == {(TILE, 3, *pixels.shape[1:3])}


def test_pixels_are_normalised_as_totensor_and_normalize_do_to_the_bit(scorer: Scorer, pair: Pair) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([values, values.T, values[::-1]], axis=2)
    expected = normalize(to_tensor(Image.fromarray(image)), pair.preprocessing.mean, pair.preprocessing.std)
    inputs, count = scorer._tile(image[None], 2)
    assert count == 1
    assert torch.equal(inputs[0], expected)


def test_the_pixels_given_are_left_as_they_are(scorer: Scorer, heads: Heads, pixels: np.ndarray) -> None:
    before = pixels.copy()
    scorer.pair_logits(pixels, heads, tile=len(pixels))
    np.testing.assert_array_equal(pixels, before)


def test_two_scorers_of_one_pair_share_no_merged_weights(pair: Pair, pixels: np.ndarray) -> None:
    first, second = (Scorer(pair, device=CPU, precision="fp32") for _ in range(2))
    head = head_at(pair, 0.2)
    expected = first.merged_logits(pixels, 0.2, head, tile=TILE)
    second.merged_logits(pixels, 0.9, head, tile=TILE)
    np.testing.assert_array_equal(first.merged_logits(pixels, 0.2, head, tile=TILE), expected)
    assert (first.segment.merges, second.segment.merges) == (1, 1)
