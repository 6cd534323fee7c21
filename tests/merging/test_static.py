"""The oracles are the papers' formulas in plain numpy float64 over whole state dicts."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from pipeline.merging.static import draw_mixup_lambda, linear, slerp, task_arithmetic, ties

State = dict[str, Tensor]
Arrays = dict[str, NDArray[np.float64]]
Layout = Callable[[int], State]


class ConvTower(nn.Module):
    """BatchNorm statistics and counter, a scalar, an integer table, a tensor of four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.conv = nn.Conv2d(3, 5, 3, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 4)
        self.register_buffer("positions", torch.arange(6))


class Attention(nn.Module):
    """A token of one value per feature, fused projections, gains that start at 1 and biases that start at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(8))
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.proj = nn.Parameter(torch.randn(8, 6))


def perturbed(module: nn.Module, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: value + 0.3 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value + seed
        for key, value in module.state_dict().items()
    }


def conv_layout(seed: int) -> State:
    torch.manual_seed(0)
    return perturbed(ConvTower(), seed)


def attention_layout(seed: int) -> State:
    torch.manual_seed(0)
    return perturbed(Attention(), seed)


def scalars_layout(seed: int) -> State:
    return {"logit_scale": torch.tensor(2.0 + seed), "steps": torch.tensor(seed), "one": torch.tensor([0.1 * seed])}


LAYOUTS = pytest.mark.parametrize("layout", [conv_layout, attention_layout, scalars_layout])


def arrays(state: State) -> Arrays:
    return {key: value.double().numpy() for key, value in state.items() if value.is_floating_point()}


def assert_merged(found: State, expected: Arrays, first: State, tolerance: float = 1e-6) -> None:
    """``found`` has ``first``'s layout, the expected values, and its own copy of ``first``'s integers."""
    assert list(found) == list(first)
    for key, value in first.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].shape == value.shape, key
        assert found[key].data_ptr() != value.data_ptr(), key
        if value.is_floating_point():
            np.testing.assert_allclose(found[key].double().numpy(), expected[key], rtol=0, atol=tolerance, err_msg=key)
        else:
            assert torch.equal(found[key], value), key


def assert_same_bits(found: State, expected: State, integers: State) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        wanted = value if value.is_floating_point() else integers[key]
        assert found[key].numpy().tobytes() == wanted.numpy().tobytes(), key


def plain_linear(states: Sequence[State], weights: Sequence[float]) -> Arrays:
    first = arrays(states[0])
    return {
        key: np.einsum("k,k...->...", np.array(weights), np.stack([arrays(state)[key] for state in states]))
        for key in first
    }


def plain_task_arithmetic(base: State, experts: Sequence[State], scale: float) -> Arrays:
    result = arrays(base)
    for expert in experts:
        result = {key: value + scale * (arrays(expert)[key] - arrays(base)[key]) for key, value in result.items()}
    return result


def plain_slerp(first: State, second: State, alpha: float) -> Arrays:
    result = {}
    for key, a in arrays(first).items():
        b = arrays(second)[key]
        norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
        if norm_a == 0 or norm_b == 0:
            result[key] = (1 - alpha) * a + alpha * b
            continue
        # Half the angle from the chord between unit vectors, which stays exact where the arc cosine does not.
        angle = 2 * np.arctan2(
            np.linalg.norm(a / norm_a - b / norm_b),
            np.linalg.norm(a / norm_a + b / norm_b),
        )
        if np.sin(angle) < 1e-4:
            result[key] = (1 - alpha) * a + alpha * b
        else:
            result[key] = (np.sin((1 - alpha) * angle) * a + np.sin(alpha * angle) * b) / np.sin(angle)
    return result


def plain_ties(base: State, experts: Sequence[State], density: float, scale: float) -> Arrays:
    """TIES on one flat vector per expert, entry by entry in Python."""
    flat_base = np.concatenate([value.ravel() for value in arrays(base).values()])
    trimmed = []
    for expert in experts:
        vector = np.concatenate([value.ravel() for value in arrays(expert).values()]) - flat_base
        count = max(1, round(density * len(vector))) if density else 0
        smallest_kept = sorted(np.abs(vector), reverse=True)[count - 1] if count else math.inf
        trimmed.append([value if abs(value) >= smallest_kept else 0.0 for value in vector])
    sums = [sum(values) for values in zip(*trimmed, strict=True)]
    majority = 1 if sum(np.sign(sums)) > 0 else -1
    merged = []
    for values, total in zip(zip(*trimmed, strict=True), sums, strict=True):
        sign = np.sign(total) or majority
        agreeing = [value for value in values if value and np.sign(value) == sign]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    result, start = {}, 0
    for key, value in arrays(base).items():
        result[key] = value + scale * np.array(merged[start : start + value.size]).reshape(value.shape)
        start += value.size
    return result


@LAYOUTS
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.6, 0.4), (1 / 3, 1 / 3, 1 / 3), (0.2, 0.0, 0.8), (1.5, -0.5)])
def test_linear_is_the_weighted_sum(layout: Layout, weights: tuple[float, ...]) -> None:
    states = [layout(seed) for seed in range(len(weights))]
    assert_merged(linear(states, weights), plain_linear(states, weights), states[0])


@LAYOUTS
def test_linear_with_all_weight_on_one_gives_that_one(layout: Layout) -> None:
    states = [layout(seed) for seed in range(3)]
    for chosen, state in enumerate(states):
        weights = [float(place == chosen) for place in range(3)]
        assert_same_bits(linear(states, weights), state, states[0])


def test_linear_without_any_weight_is_zero() -> None:
    state = conv_layout(1)
    assert_merged(linear([state], [0.0]), {key: np.zeros_like(value) for key, value in arrays(state).items()}, state)


@given(st.floats(0, 1), st.integers(0, 5))
def test_linear_of_equal_tensors_gives_themselves(alpha: float, seed: int) -> None:
    state = attention_layout(seed)
    assert_same_bits(linear([state, state], [1 - alpha, alpha]), state, state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_summed_in_float64_and_keep_their_dtype(dtype: torch.dtype) -> None:
    states = [{key: value.to(dtype) for key, value in attention_layout(seed).items()} for seed in range(3)]
    weights = (0.2, 0.5, 0.3)
    expected = plain_linear(states, weights)
    half_steps = {key: np.abs(value).max() * torch.finfo(dtype).eps / 2 for key, value in expected.items()}
    assert_merged(linear(states, weights), expected, states[0], 1.01 * max(half_steps.values()))


def test_sums_that_float32_would_lose_are_kept() -> None:
    states = [{"weight": torch.tensor([value])} for value in (1e8, 1.0, -1e8)]
    assert linear(states, (1.0, 1.0, 1.0))["weight"].item() == 1.0


@LAYOUTS
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("experts", [1, 2, 3])
def test_task_arithmetic_adds_scaled_task_vectors(layout: Layout, scale: float, experts: int) -> None:
    base, states = layout(0), [layout(seed) for seed in range(1, experts + 1)]
    assert_merged(task_arithmetic(base, states, scale), plain_task_arithmetic(base, states, scale), base)


@LAYOUTS
def test_task_arithmetic_at_scale_one_is_the_expert_and_at_zero_the_generalist(layout: Layout) -> None:
    generalist, expert = layout(0), layout(1)
    assert_same_bits(task_arithmetic(generalist, [expert], 1.0), expert, generalist)
    assert_same_bits(task_arithmetic(generalist, [expert, layout(2)], 0.0), generalist, generalist)


def test_task_arithmetic_at_scale_one_keeps_weights_far_smaller_than_the_generalists() -> None:
    generalist, expert = {"weight": torch.tensor([1.0, -0.0])}, {"weight": torch.tensor([1e-20, 3.0])}
    assert_same_bits(task_arithmetic(generalist, [expert], 1.0), expert, generalist)
    assert_same_bits(task_arithmetic(generalist, [expert], 0.0), generalist, generalist)


@LAYOUTS
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_slerp_follows_the_arc_of_each_tensor(layout: Layout, alpha: float) -> None:
    first, second = layout(1), layout(2)
    assert_merged(slerp(first, second, alpha), plain_slerp(first, second, alpha), first)


@given(st.floats(0, 1), st.integers(2, 40), st.integers(0, 1000))
def test_slerp_of_unit_vectors_has_unit_length_and_divides_the_angle(alpha: float, size: int, seed: int) -> None:
    a, b = (torch.from_numpy(vector) for vector in np.random.default_rng(seed).normal(size=(2, size)))
    a, b = a / a.norm(), b / b.norm()
    assume(abs(float(a @ b)) < 0.99)
    middle = slerp({"x": a}, {"x": b}, alpha)["x"]
    assert float(middle.norm()) == pytest.approx(1.0, abs=1e-12)
    angle, part = (math.acos(min(1.0, float(a @ other))) for other in (b, middle))
    assert part == pytest.approx(alpha * angle, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@given(alpha=st.floats(0, 1))
def test_slerp_of_equal_tensors_gives_themselves(dtype: torch.dtype, alpha: float) -> None:
    state = {key: value.to(dtype) for key, value in attention_layout(1).items()}
    merged = slerp(state, {key: value.clone() for key, value in state.items()}, alpha)
    assert all(torch.equal(merged[key], value) for key, value in state.items())


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_slerp_at_its_ends_gives_the_two_models(alpha: float) -> None:
    first, second = conv_layout(1), conv_layout(2)
    assert_same_bits(slerp(first, second, alpha), second if alpha else first, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([3.0, 4.0], [6.0, 8.0]),
        ([3.0, 4.0], [-6.0, -8.0]),
        ([1.0, 0.0], [1.0, 1e-5]),
        ([1.0, 0.0], [-1.0, 1e-5]),
        ([0.0, 0.0], [6.0, 8.0]),
        ([3.0, 4.0], [0.0, 0.0]),
        ([2.0], [3.0]),
        ([2.0], [-3.0]),
    ],
)
def test_slerp_is_linear_where_the_angle_says_nothing(first: list[float], second: list[float]) -> None:
    merged = slerp({"x": torch.tensor(first)}, {"x": torch.tensor(second)}, 0.25)["x"]
    expected = 0.75 * np.array(first) + 0.25 * np.array(second)
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-6, atol=1e-12)


def test_slerp_becomes_linear_below_a_sine_of_1e_4_without_a_jump_that_float32_could_hold() -> None:
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    below, above = (
        float(
            slerp({"x": first}, {"x": torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)}, 0.5)[
                "x"
            ].norm()
        )
        for angle in (0.99999e-4, 1.00001e-4)
    )
    assert above == pytest.approx(1.0, abs=1e-13)
    # The middle of the chord lies cos(Ω/2) from the centre.
    assert below == pytest.approx(math.cos(0.5e-4), abs=1e-13)


@LAYOUTS
@pytest.mark.parametrize("density", [0.0, 0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("experts", [1, 2, 3])
def test_ties_trims_elects_and_averages(layout: Layout, density: float, experts: int) -> None:
    base, states = layout(0), [layout(seed) for seed in range(1, experts + 1)]
    assert_merged(ties(base, states, density=density, scale=0.7), plain_ties(base, states, density, 0.7), base)


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=12, max_size=12), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_ties_with_many_equal_magnitudes_keeps_all_at_the_threshold(vectors: list[list[int]], density: float) -> None:
    base = {"a": torch.full((2, 3), 0.5), "b": torch.full((6,), -1.0)}
    experts = [
        {"a": base["a"] + torch.tensor(vector[:6]).reshape(2, 3), "b": base["b"] + torch.tensor(vector[6:])}
        for vector in vectors
    ]
    assert_merged(ties(base, experts, density=density, scale=1.0), plain_ties(base, experts, density, 1.0), base)


@LAYOUTS
def test_ties_with_one_expert_is_its_trimmed_task_vector(layout: Layout) -> None:
    base, expert = layout(0), layout(1)
    differences = {key: arrays(expert)[key] - value for key, value in arrays(base).items()}
    magnitudes = np.sort(np.abs(np.concatenate([value.ravel() for value in differences.values()])))
    threshold = magnitudes[len(magnitudes) - max(1, round(0.2 * len(magnitudes)))]
    expected = {
        key: value + np.where(np.abs(differences[key]) >= threshold, differences[key], 0.0)
        for key, value in arrays(base).items()
    }
    assert_merged(ties(base, [expert], density=0.2, scale=1.0), expected, base)
    assert_merged(ties(base, [expert], density=1.0, scale=1.0), arrays(expert), base)


def test_ties_trims_over_all_tensors_together() -> None:
    base = {"large": torch.zeros(4), "small": torch.zeros(6)}
    expert = {"large": torch.tensor([5.0, -6.0, 7.0, 8.0]), "small": torch.full((6,), 0.1)}
    merged = ties(base, [expert], density=0.3, scale=1.0)
    assert merged["large"].tolist() == [0.0, -6.0, 7.0, 8.0]
    assert not merged["small"].any()


def test_ties_elects_the_heavier_sign_and_averages_those_that_agree() -> None:
    base = {"x": torch.zeros(4)}
    experts = [
        {"x": torch.tensor(values)} for values in ([4.0, 1.0, -2.0, 8.0], [2.0, 2.0, -4.0, 0.0], [-5.0, -6, 3, 0])
    ]
    merged = ties(base, experts, density=1.0, scale=1.0)["x"]
    # Sums 1, -3, -3, 8; a value of 0 does not count in the mean.
    assert merged.tolist() == [3.0, -6.0, -3.0, 8.0]


@pytest.mark.parametrize(("others", "expected"), [((1.0, 1.0), 2.0), ((-1.0, -1.0), -2.0), ((1.0, -1.0), -2.0)])
def test_ties_gives_a_zero_sum_the_sign_of_the_majority(others: tuple[float, float], expected: float) -> None:
    base = {"x": torch.zeros(3)}
    experts = [{"x": torch.tensor([2.0, *others])}, {"x": torch.tensor([-2.0, *others])}]
    assert ties(base, experts, density=1.0, scale=1.0)["x"][0].item() == expected


def test_ties_at_scale_zero_or_density_zero_is_the_generalist() -> None:
    base, experts = conv_layout(0), [conv_layout(1), conv_layout(2)]
    assert_same_bits(ties(base, experts, density=0.2, scale=0.0), base, base)
    assert_same_bits(ties(base, experts, density=0.0, scale=1.0), base, base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_ties_keeps_other_dtypes(dtype: torch.dtype) -> None:
    base, *experts = ({key: value.to(dtype) for key, value in attention_layout(seed).items()} for seed in range(3))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    assert_merged(ties(base, experts, density=1.0, scale=0.5), plain_ties(base, experts, 1.0, 0.5), base, tolerance)


@pytest.mark.parametrize(
    "merge",
    [
        lambda states: linear(states, (0.2, 0.5, 0.3)),
        lambda states: task_arithmetic(states[0], states[1:], 0.3),
        lambda states: slerp(states[0], states[1], 0.5),
        lambda states: ties(states[0], states[1:], density=0.2, scale=0.5),
    ],
)
def test_merging_leaves_its_inputs_alone(merge: Callable[[list[State]], State]) -> None:
    states = [conv_layout(seed) for seed in range(3)]
    merged = merge(states)
    for value in merged.values():
        value.fill_(7)
    for seed, state in enumerate(states):
        assert all(torch.equal(value, state[key]) for key, value in conv_layout(seed).items())


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_fractions_outside_zero_to_one_are_refused(value: float) -> None:
    state = scalars_layout(1)
    with pytest.raises(ValueError, match=r"'alpha' must lie in \[0, 1\]"):
        slerp(state, state, value)
    with pytest.raises(ValueError, match=r"'density' must lie in \[0, 1\]"):
        ties(state, [state], density=value, scale=1.0)


def test_mixup_lambda_follows_from_its_seed() -> None:
    drawn = [draw_mixup_lambda("beta", 0.4, seed) for seed in range(20)]
    assert drawn == [draw_mixup_lambda("beta", 0.4, seed) for seed in range(20)]
    assert drawn == [float(np.random.default_rng(seed).beta(0.4, 0.4)) for seed in range(20)]
    assert len(set(drawn)) == 20


@pytest.mark.parametrize(
    ("distribution", "alpha", "expected"),
    [("beta", 0.2, stats.beta(0.2, 0.2)), ("beta", 5.0, stats.beta(5, 5)), ("uniform", 0.2, stats.uniform())],
)
def test_mixup_lambda_has_the_distribution_it_names(distribution: str, alpha: float, expected: object) -> None:
    drawn = [draw_mixup_lambda(distribution, alpha, seed) for seed in range(500)]
    assert all(0.0 <= value <= 1.0 for value in drawn)
    assert stats.kstest(drawn, expected.cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_mixup_refuses_an_alpha_that_is_not_positive(alpha: float) -> None:
    with pytest.raises(ValueError, match="'alpha' must be > 0"):
        draw_mixup_lambda("beta", alpha, 0)
