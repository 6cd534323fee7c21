"""The oracle is open_clip itself: encode_text of a model that holds plainly averaged weights."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.errors import ManifestError, OutOfMemoryError
from pipeline.models.architectures import load_architecture
from pipeline.models.class_embeddings import (
    ClassHead,
    TextTower,
    blend_heads,
    fill_templates,
    logits_by_own_heads,
)
from pipeline.models.head_curve import HeadCurve, chebyshev_lobatto, fit_head_curve
from pipeline.models.sources import SourceModels
from pipeline.models.tile_inputs import Upload
from tests.models.factory import (
    TINY,
    along,
    blended,
    changed,
    perturbed,
    random_state,
    write_config,
    write_pair,
    write_sources,
)

CLASSES = ["basophil", "eosinophil", "immature granulocyte", "platelet"]
TEMPLATES = ["a photo of {}.", "{} under the microscope", "{}, or {}"]
CPU = torch.device("cpu")
HELD_OUT = (0.013, 0.2, 0.37, 0.5, 0.618, 0.81, 0.997)
pytestmark = pytest.mark.usefixtures("one_thread")


def make_pair(folder: Path, config: dict[str, object], biases: tuple[float, float] = (0.0, 0.0)) -> SourceModels:
    path = write_config(folder, config)
    generalist = random_state(path, seed=1)
    ends = []
    for state, scale, bias in zip((generalist, perturbed(generalist, 2, 0.1)), (2.0, 3.0), biases, strict=True):
        scalars = {"logit_scale": torch.tensor(scale), "logit_bias": torch.tensor(bias)}
        ends.append(state | {key: value for key, value in scalars.items() if key in state})
    return write_pair(folder, path, *ends)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> SourceModels:
    """Two text towers that see different things: far further apart than fine-tuning takes them."""
    return make_pair(tmp_path_factory.mktemp("pair"), TINY)


@pytest.fixture(scope="module")
def tokens(pair: SourceModels) -> torch.Tensor:
    return tokens_of(pair)


def tokens_of(models: SourceModels) -> torch.Tensor:
    return models.architecture.tokenize(fill_templates(CLASSES, TEMPLATES))


def text_tower(models: SourceModels, *, merged: bool = True) -> TextTower:
    return TextTower(models, tokens_of(models), len(CLASSES), merged=merged, device=CPU)


@torch.inference_mode()
def open_clip_head(models: SourceModels, weights: Sequence[float]) -> tuple[torch.Tensor, float, float]:
    """Class embeddings [C, D], scale and bias, one prompt at a time."""
    model = models.architecture.build()
    model.load_state_dict(blended([*models.states.values()], weights))
    tokenizer = models.architecture.tokenizer()
    rows = []
    for name in CLASSES:
        prompts = [template.replace("{}", name) for template in TEMPLATES]
        features = [functional.normalize(model.encode_text(tokenizer([prompt]))[0], dim=0) for prompt in prompts]
        rows.append(functional.normalize(torch.stack(features).mean(dim=0), dim=0))
    bias = getattr(model, "logit_bias", None)
    return torch.stack(rows), math.exp(model.logit_scale), 0.0 if bias is None else float(bias)


def largest_logit_change(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest change of a logit over many image features of unit length, [C, D] embeddings times their scale."""
    features = functional.normalize(torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    return float((features @ (first - second).T).abs().max())


def test_templates_of_a_class_lie_together_and_every_placeholder_is_filled() -> None:
    assert fill_templates(["cat", "a {dog}"], ["{}", "{} or {}"]) == [
        "cat",
        "cat or cat",
        "a {dog}",
        "a {dog} or a {dog}",
    ]


@pytest.mark.parametrize("lam", [0.0, 1.0, *HELD_OUT])
def test_a_head_is_what_open_clip_computes_prompt_by_prompt(pair: SourceModels, lam: float) -> None:
    head = text_tower(pair).head(along(lam))
    embeddings, scale, bias = open_clip_head(pair, along(lam))
    torch.testing.assert_close(head.embeddings_CD, embeddings, rtol=0, atol=1e-6)
    assert head.logit_scale == pytest.approx(scale, rel=1e-6)
    assert head.logit_bias.tolist() == [bias] * len(CLASSES) == [0.0] * len(CLASSES)


def test_logit_scale_and_bias_are_interpolated_as_parameters(tmp_path: Path) -> None:
    """The scale is stored as its logarithm, so that halfway it is the geometric mean."""
    pair = make_pair(tmp_path, changed(TINY, init_logit_bias=-3.0), biases=(-10.0, -2.0))
    head = text_tower(pair).head(along(0.5))
    embeddings, scale, bias = open_clip_head(pair, along(0.5))
    assert head.logit_scale == pytest.approx(scale) == pytest.approx(math.exp(2.5))
    assert head.logit_bias.tolist() == pytest.approx([bias] * len(CLASSES))
    assert bias == pytest.approx(-6.0)
    features = functional.normalize(torch.randn(5, 16), dim=1)
    torch.testing.assert_close(head.logits(features), scale * features @ embeddings.T + bias, rtol=1e-5, atol=1e-5)
    curve = HeadCurve.through(text_tower(pair), chebyshev_lobatto(9), along)
    assert curve.at(0.4).logit_scale == pytest.approx(math.exp(2.4), rel=1e-6)
    assert curve.at(0.4).logit_bias.tolist() == pytest.approx([-6.8] * len(CLASSES), rel=1e-6)


def test_every_head_costs_one_counted_text_forward(pair: SourceModels, tokens: torch.Tensor) -> None:
    tower = text_tower(pair)
    for lam in (0.0, 0.5, 0.5):
        tower.head(along(lam))
    assert (tower.forward_calls, tower.forward_prompts) == (3, 3 * len(tokens))


@pytest.mark.parametrize("count", [2, 9, 17, 33])
def test_nodes_are_those_of_chebyshev_and_lobatto(count: int) -> None:
    nodes = chebyshev_lobatto(count)
    assert nodes[0] == 0.0
    assert nodes[-1] == 1.0
    expected = [(1 - math.cos(math.pi * k / (count - 1))) / 2 for k in range(count)]
    np.testing.assert_allclose(nodes, expected, rtol=0, atol=1e-15)
    assert (np.diff(nodes) > 0).all()


def test_at_its_nodes_the_curve_is_the_exact_head(pair: SourceModels) -> None:
    tower = text_tower(pair)
    nodes = chebyshev_lobatto(9)
    curve = HeadCurve.through(tower, nodes, along)
    for lam in nodes.tolist():
        exact, found = tower.head(along(lam)), curve.at(lam)
        assert torch.equal(found.embeddings_CD, exact.embeddings_CD)
        assert found.logit_scale == exact.logit_scale
        assert torch.equal(found.logit_bias, exact.logit_bias)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_between_its_nodes_the_curve_stays_within_the_tolerance(pair: SourceModels, tolerance: float) -> None:
    tower = text_tower(pair)
    ends = [tower.head(along(lam)).embeddings_CD for lam in (0.0, 1.0)]
    assert float((ends[0] * ends[1]).sum(dim=1).max()) < 0.9, "the two text towers see something else"
    curve = fit_head_curve(tower, tolerance=tolerance, weights_at=along)
    assert curve is not None
    assert 0 < curve.error <= tolerance
    for lam in HELD_OUT:
        found, exact = curve.at(lam), tower.head(along(lam))
        change = largest_logit_change(found.logit_scale * found.embeddings_CD, exact.logit_scale * exact.embeddings_CD)
        assert change <= tolerance


def test_a_stricter_tolerance_never_takes_fewer_nodes(pair: SourceModels) -> None:
    tower = text_tower(pair)
    curves = [fit_head_curve(tower, tolerance=tolerance, weights_at=along) for tolerance in (1.0, 1e-4)]
    counts = [len(curve.lambdas) for curve in curves if curve is not None]
    assert len(counts) == 2
    assert counts == sorted(counts)


def test_a_tolerance_below_rounding_gives_no_curve(pair: SourceModels) -> None:
    assert fit_head_curve(text_tower(pair), tolerance=1e-12, weights_at=along) is None


def test_every_lambda_is_computed_once_however_often_nodes_are_added(pair: SourceModels) -> None:
    class Listening(TextTower):
        def head(self, weights: Sequence[float]) -> ClassHead:
            seen.append(tuple(weights))
            return super().head(weights)

    seen: list[tuple[float, ...]] = []
    tower = Listening(pair, tokens_of(pair), len(CLASSES), merged=True, device=CPU)
    assert fit_head_curve(tower, tolerance=1e-12, weights_at=along) is None
    assert len(seen) == len(set(seen)) == tower.forward_calls
    # 33 nodes, those of 9 and 17 among them, and the places between them where the error is looked at.
    assert tower.forward_calls == 33 + 8


def test_with_the_generalists_text_tower_every_lambda_has_one_head(pair: SourceModels) -> None:
    tower = text_tower(pair, merged=False)
    heads = [tower.head(along(lam)) for lam in (0.0, 0.3, 1.0)]
    embeddings, scale, _ = open_clip_head(pair, along(0.0))
    for head in heads:
        assert torch.equal(head.embeddings_CD, heads[0].embeddings_CD)
        assert head.logit_scale == heads[0].logit_scale == pytest.approx(scale, rel=1e-6)
    torch.testing.assert_close(heads[0].embeddings_CD, embeddings, rtol=0, atol=1e-6)


def test_prompts_that_fill_the_context_are_kept_and_one_more_token_is_refused_by_name(tmp_path: Path) -> None:
    architecture = load_architecture(str(write_config(tmp_path)))
    fitting = " ".join(["cell"] * 18)  # 20 tokens with the first and the last
    assert int((architecture.tokenize([fitting]) != 0).sum()) == 20
    with pytest.raises(ManifestError) as caught:
        architecture.tokenize(["short", f"{fitting} more", fitting])
    assert f"prompts: '{fitting} more' is longer than the model's 20 tokens" in str(caught.value)
    assert "shorten the template or the class name" in str(caught.value)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> SourceModels:
    folder = tmp_path_factory.mktemp("sites")
    path = write_config(folder, changed(TINY, init_logit_bias=-3.0))
    first = random_state(path, seed=1)
    return write_sources(folder, path, [first, perturbed(first, 2, 0.1), perturbed(first, 3, 0.1)])


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 0, 1), (0.2, 0.3, 0.5), (0.5, 0, 0.5)])
def test_a_head_of_three_sources_is_that_of_their_averaged_weights(
    sites: SourceModels, weights: tuple[float, ...]
) -> None:
    head = text_tower(sites).head(weights)
    embeddings, scale, bias = open_clip_head(sites, weights)
    torch.testing.assert_close(head.embeddings_CD, embeddings, rtol=0, atol=1e-6)
    assert head.logit_scale == pytest.approx(scale, rel=1e-6)
    assert head.logit_bias.tolist() == pytest.approx([bias] * len(CLASSES), rel=1e-6)


def test_the_generalists_text_tower_needs_a_source_of_that_name(sites: SourceModels) -> None:
    with pytest.raises(ManifestError, match=r"no source is named so \(site-0, site-1, site-2\); set it to merged"):
        text_tower(sites, merged=False)


def test_a_curve_may_lead_from_one_source_to_another_past_the_rest(sites: SourceModels) -> None:
    def weights_at(lam: float) -> tuple[float, ...]:
        return 0.0, 1 - lam, lam

    tower = text_tower(sites)
    curve = HeadCurve.through(tower, chebyshev_lobatto(33), weights_at)
    embeddings, scale, _ = open_clip_head(sites, weights_at(0.37))
    found = curve.at(0.37)
    torch.testing.assert_close(found.embeddings_CD, embeddings, rtol=0, atol=1e-5)
    assert found.logit_scale == pytest.approx(scale, rel=1e-6)
    assert tower.forward_calls == 33


def random_head(seed: int, *, cosine: bool) -> ClassHead:
    generator = torch.Generator().manual_seed(seed)
    embeddings_CD = torch.randn(5, 16, generator=generator)
    if not cosine:
        return ClassHead(embeddings_CD, 1.0, torch.randn(5, generator=generator), cosine=False)
    scale = math.exp(float(torch.randn((), generator=generator)))
    return ClassHead(functional.normalize(embeddings_CD, dim=1), scale, torch.randn(5, generator=generator))


@pytest.mark.parametrize("cosine", [True, False])
def test_heads_are_blended_as_written_in_float64(cosine: bool) -> None:
    heads = [random_head(seed, cosine=cosine) for seed in range(3)]
    weights = np.array([0.2, 0.3, 0.5])
    embeddings = np.tensordot(weights, np.stack([head.embeddings_CD.double() for head in heads]), axes=1)
    if cosine:
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    scale = np.prod([head.logit_scale**weight for head, weight in zip(heads, weights, strict=True)])
    bias = weights @ np.stack([head.logit_bias.double() for head in heads])
    blend = blend_heads(heads, weights)
    assert blend.cosine is cosine
    np.testing.assert_allclose(blend.embeddings_CD, embeddings, rtol=0, atol=1e-7)
    np.testing.assert_allclose(blend.logit_bias, bias, rtol=0, atol=1e-7)
    assert blend.logit_scale == pytest.approx(scale, rel=1e-12)
    features = torch.randn(7, 16, generator=torch.Generator().manual_seed(9))
    seen = functional.normalize(features.double(), dim=1) if cosine else features.double()
    np.testing.assert_allclose(blend.logits(features), scale * seen.numpy() @ embeddings.T + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("end", [0, 1, 2])
def test_all_weight_on_one_head_is_exactly_that_head(cosine: bool, end: int) -> None:
    heads = [random_head(seed, cosine=cosine) for seed in range(3)]
    weights = [float(position == end) for position in range(3)]
    assert blend_heads(heads, weights) is heads[end]


@pytest.mark.parametrize("weights", [(0.5, 0.4), (1.5, -0.5), (1.0,), (math.nan, 1.0)])
def test_weights_that_are_no_average_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="'weights' must be 2 numbers >= 0 that sum to 1"):
        blend_heads([random_head(seed, cosine=True) for seed in range(2)], weights)


@pytest.mark.parametrize("own", [False, True], ids=["one head", "own heads"])
def test_features_of_half_precision_are_scaled_to_unit_length_in_single(own: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = functional.normalize(torch.randn(8, 512, generator=generator), dim=-1)
    head = ClassHead(embeddings, 100.0, torch.zeros(8))
    features = (torch.randn(64, 512, generator=generator) + 3 * embeddings[0]).bfloat16()
    wide = features.double()
    expected = 100 * (wide / wide.norm(dim=1, keepdim=True)) @ embeddings.double().T
    found = logits_by_own_heads(features, [head] * 64, Upload(torch.device("cpu"))) if own else head.logits(features)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


def test_clip_features_need_not_have_unit_length() -> None:
    head, features = random_head(0, cosine=True), torch.randn(4, 16)
    torch.testing.assert_close(head.logits(features), head.logits(features * torch.tensor([[0.1], [2], [30], [4]])))


def test_prompts_that_do_not_fit_into_memory_are_one_line(pair: SourceModels, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = text_tower(pair)
    at = tower._segment.at

    def without_room(weights: Sequence[float]) -> torch.nn.Module:
        model = at(weights)

        def encode_text(*_: object, **__: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

        vars(model)["encode_text"] = encode_text
        return model

    monkeypatch.setattr(tower._segment, "at", without_room)
    with pytest.raises(OutOfMemoryError, match=r"^text tower: .* encode 12 prompts at once .*1 GiB"):
        tower.head(along(0.5))
