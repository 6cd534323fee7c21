"""Options of the scorer against what it computes without them."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import NumericKindError
from pipeline.models.class_embeddings import ClassHead
from pipeline.models.compiled import SHAPES, CompiledTowers
from pipeline.models.scorer import Scorer
from pipeline.models.sources import SourceModels
from tests.models.factory import TINY, TINY_RESNET, along, random_state, write_config, write_pair

CPU = torch.device("cpu")
TILE = 4
TOLERANCE = 1e-5
CONFIGS = {"transformer": TINY, "resnet": TINY_RESNET}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SourceModels:
    folder = tmp_path_factory.mktemp("pair")
    path = write_config(folder, CONFIGS[request.param])
    return write_pair(folder, path, random_state(path, seed=1), random_state(path, seed=2))


@pytest.fixture(scope="module")
def pixels(pair: SourceModels) -> np.ndarray:
    geometry = pair.preprocessing.geometry
    return np.random.default_rng(0).integers(0, 256, (10, geometry.height, geometry.width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def head() -> ClassHead:
    return ClassHead(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), 100.0, torch.zeros(3))


def assert_near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_channels_last_gives_the_same_logits_to_rounding(
    pair: SourceModels, pixels: np.ndarray, head: ClassHead
) -> None:
    plain, last = (
        Scorer(pair, device=CPU, precision="fp32", memory_format=layout) for layout in ("contiguous", "channels_last")
    )
    lambdas = np.linspace(0, 1, len(pixels)).tolist()
    for ours, theirs in zip(*(s.source_logits(pixels, [head, head], tile=TILE) for s in (last, plain)), strict=True):
        assert_near(ours, theirs)
    assert_near(*(scorer.merged_logits(pixels, along(0.3), head, tile=TILE) for scorer in (last, plain)))
    assert_near(
        *(
            scorer.per_sample_logits(pixels, lambdas, [head] * len(pixels), ends=("generalist", "expert"), tile=TILE)
            for scorer in (last, plain)
        )
    )
    assert last._inputs(pixels[:2], TILE).is_contiguous(memory_format=torch.channels_last)


def test_a_tower_is_compiled_once_for_all_weights(pair: SourceModels, pixels: np.ndarray, head: ClassHead) -> None:
    plain = Scorer(pair, device=CPU, precision="fp32")
    compiled = Scorer(pair, device=CPU, precision="fp32", compiled=True, merge_ahead=True)
    # The first tile of the generalist is what is compiled.
    compiled.merged_logits(pixels[:1], along(0.0), head, tile=TILE)
    single = compiled.alike(pair.with_single("expert", pair.states["expert"]))
    with torch.compiler.set_stance("fail_on_recompile"):
        ends = compiled.source_logits(pixels, [head, head], tile=TILE)
        for lam, following in ((0.0, 0.2), (0.2, 0.7), (0.7, 0.9), (0.9, 1.0), (1.0, 0.0)):
            found = compiled.merged_logits(pixels, along(lam), head, tile=TILE, following=along(following))
            assert_near(found, plain.merged_logits(pixels, along(lam), head, tile=TILE))
            if lam in (0.0, 1.0):
                np.testing.assert_array_equal(found, ends[int(lam)])
        np.testing.assert_array_equal(single.source_logits(pixels, [head], tile=TILE)[0], ends[1])
    assert compiled.segment.merges == 3


def test_more_shapes_than_torch_compiles_by_default_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is counted are shapes; making machine code of each would take minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled, layer = CompiledTowers(), torch.nn.Linear(2, 2).eval()
    for images in range(1, 20):
        inputs = torch.ones(images, 2)
        torch.testing.assert_close(compiled(layer, inputs), layer(inputs))


def test_a_shape_too_many_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled, layer = CompiledTowers(), torch.nn.Linear(2, 2).eval()
    shapes = [torch.ones(images, 2) for images in range(1, SHAPES + 100)]
    with pytest.raises(NumericKindError) as caught:
        [compiled(layer, inputs) for inputs in shapes]
    assert str(caught.value).startswith("compute.compile: Linear cannot be compiled (")
    assert "\n" not in str(caught.value)


def test_compiled_neither_padding_nor_batch_mates_change_an_image(
    pair: SourceModels, pixels: np.ndarray, head: ClassHead
) -> None:
    compiled = Scorer(pair, device=CPU, precision="fp32", compiled=True)
    whole = compiled.merged_logits(pixels, along(0.4), head, tile=TILE)
    order = np.random.default_rng(1).permutation(len(pixels))
    np.testing.assert_array_equal(compiled.merged_logits(pixels[order], along(0.4), head, tile=TILE), whole[order])
    np.testing.assert_array_equal(compiled.merged_logits(pixels[:1], along(0.4), head, tile=TILE), whole[:1])
