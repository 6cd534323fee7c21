"""The oracle is open_clip itself: encode_text of a model that holds plainly interpolated weights."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.errors import ManifestError
from pipeline.models.architectures import load_architecture
from pipeline.models.class_embeddings import HeadCurve, TextTower, chebyshev_lobatto, fill_templates, fit_head_curve
from pipeline.models.pair import Pair, load_pair
from tests.models.factory import TINY, changed, interpolated, perturbed, random_state, write_checkpoint, write_config

CLASSES = ["basophil", "eosinophil", "immature granulocyte", "platelet"]
TEMPLATES = ["a photo of {}.", "{} under the microscope", "{}, or {}"]
CPU = torch.device("cpu")
HELD_OUT = (0.013, 0.2, 0.37, 0.5, 0.618, 0.81, 0.997)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """What a worker has by default; on tiny models a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_pair(folder: Path, config: dict[str, object], biases: tuple[float, float] = (0.0, 0.0)) -> Pair:
    path = write_config(folder, config)
    generalist = random_state(path, seed=1)
    files = []
    for state, scale, bias in zip((generalist, perturbed(generalist, 2, 0.1)), (2.0, 3.0), biases, strict=True):
        scalars = {"logit_scale": torch.tensor(scale), "logit_bias": torch.tensor(bias)}
        edited = state | {key: value for key, value in scalars.items() if key in state}
        files.append(write_checkpoint(folder / f"{scale}.safetensors", edited))
    return load_pair(str(path), *map(str, files))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two text towers that see different things: far further apart than fine-tuning takes them."""
    return make_pair(tmp_path_factory.mktemp("pair"), TINY)


@pytest.fixture(scope="module")
def tokens(pair: Pair) -> torch.Tensor:
    return pair.architecture.tokenize(fill_templates(CLASSES, TEMPLATES))


@torch.inference_mode()
def open_clip_head(pair: Pair, lam: float) -> tuple[torch.Tensor, float, float]:
    """Class embeddings [C, D], scale and bias, one prompt at a time."""
    model = pair.architecture.build()
    model.load_state_dict(interpolated(dict(pair.generalist), dict(pair.expert), lam))
    tokenizer = pair.architecture.tokenizer()
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
def test_a_head_is_what_open_clip_computes_prompt_by_prompt(pair: Pair, tokens: torch.Tensor, lam: float) -> None:
    head = TextTower(pair, merged=True, device=CPU).head(lam, tokens, len(CLASSES))
    embeddings, scale, bias = open_clip_head(pair, lam)
    torch.testing.assert_close(head.embeddings_CD, embeddings, rtol=0, atol=1e-6)
    assert head.logit_scale == pytest.approx(scale, rel=1e-6)
    assert head.logit_bias == bias == 0.0


def test_logit_scale_and_bias_are_interpolated_as_parameters(tmp_path: Path) -> None:
    """The scale is stored as its logarithm, so that halfway it is the geometric mean."""
    pair = make_pair(tmp_path, changed(TINY, init_logit_bias=-3.0), biases=(-10.0, -2.0))
    tokens = pair.architecture.tokenize(fill_templates(CLASSES, TEMPLATES))
    head = TextTower(pair, merged=True, device=CPU).head(0.5, tokens, len(CLASSES))
    embeddings, scale, bias = open_clip_head(pair, 0.5)
    assert head.logit_scale == pytest.approx(scale) == pytest.approx(math.exp(2.5))
    assert head.logit_bias == pytest.approx(bias) == pytest.approx(-6.0)
    features = functional.normalize(torch.randn(5, 16), dim=1)
    torch.testing.assert_close(head.logits(features), scale * features @ embeddings.T + bias, rtol=1e-5, atol=1e-5)
    curve = HeadCurve.through(TextTower(pair, merged=True, device=CPU), chebyshev_lobatto(9), tokens, len(CLASSES))
    assert curve.at(0.4).logit_scale == pytest.approx(math.exp(2.4), rel=1e-6)
    assert curve.at(0.4).logit_bias == pytest.approx(-6.8, rel=1e-6)


def test_every_head_costs_one_counted_text_forward(pair: Pair, tokens: torch.Tensor) -> None:
    tower = TextTower(pair, merged=True, device=CPU)
    for lam in (0.0, 0.5, 0.5):
        tower.head(lam, tokens, len(CLASSES))
    assert (tower.forward_calls, tower.forward_prompts) == (3, 3 * len(tokens))


@pytest.mark.parametrize("count", [2, 9, 17, 33])
def test_nodes_are_those_of_chebyshev_and_lobatto(count: int) -> None:
    nodes = chebyshev_lobatto(count)
    assert nodes[0] == 0.0
    assert nodes[-1] == 1.0
    expected = [(1 - math.cos(math.pi * k / (count - 1))) / 2 for k in range(count)]
    np.testing.assert_allclose(nodes, expected, rtol=0, atol=1e-15)
    assert (np.diff(nodes) > 0).all()


def test_at_its_nodes_the_curve_is_the_exact_head(pair: Pair, tokens: torch.Tensor) -> None:
    tower = TextTower(pair, merged=True, device=CPU)
    nodes = chebyshev_lobatto(9)
    curve = HeadCurve.through(tower, nodes, tokens, len(CLASSES))
    for lam in nodes.tolist():
        exact, found = tower.head(lam, tokens, len(CLASSES)), curve.at(lam)
        assert torch.equal(found.embeddings_CD, exact.embeddings_CD)
        assert (found.logit_scale, found.logit_bias) == (exact.logit_scale, exact.logit_bias)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_between_its_nodes_the_curve_stays_within_the_tolerance(
    pair: Pair, tokens: torch.Tensor, tolerance: float
) -> None:
    tower = TextTower(pair, merged=True, device=CPU)
    ends = [tower.head(lam, tokens, len(CLASSES)).embeddings_CD for lam in (0.0, 1.0)]
    assert float((ends[0] * ends[1]).sum(dim=1).max()) < 0.9, "the two text towers see something else"
    curve = fit_head_curve(tower, tokens, len(CLASSES), tolerance=tolerance)
    assert curve is not None
    assert 0 < curve.error <= tolerance
    for lam in HELD_OUT:
        found, exact = curve.at(lam), tower.head(lam, tokens, len(CLASSES))
        change = largest_logit_change(found.logit_scale * found.embeddings_CD, exact.logit_scale * exact.embeddings_CD)
        assert change <= tolerance


def test_a_stricter_tolerance_never_takes_fewer_nodes(pair: Pair, tokens: torch.Tensor) -> None:
    tower = TextTower(pair, merged=True, device=CPU)
    curves = [fit_head_curve(tower, tokens, len(CLASSES), tolerance=tolerance) for tolerance in (1.0, 1e-4)]
    counts = [len(curve.lambdas) for curve in curves if curve is not None]
    assert len(counts) == 2
    assert counts == sorted(counts)


def test_a_tolerance_below_rounding_gives_no_curve(pair: Pair, tokens: torch.Tensor) -> None:
    assert fit_head_curve(TextTower(pair, merged=True, device=CPU), tokens, len(CLASSES), tolerance=1e-12) is None


def test_with_the_generalists_text_tower_every_lambda_has_one_head(pair: Pair, tokens: torch.Tensor) -> None:
    tower = TextTower(pair, merged=False, device=CPU)
    heads = [tower.head(lam, tokens, len(CLASSES)) for lam in (0.0, 0.3, 1.0)]
    embeddings, scale, _ = open_clip_head(pair, 0.0)
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
