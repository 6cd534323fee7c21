"""The oracle is numpy on the concatenated float64 vectors of each group."""

import logging
import math

import numpy as np
import open_clip
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.merging.distances import Distance, by_component, by_layer, component_of, distances, layer_of

State = dict[str, Tensor]


def clip_like(seed: int) -> State:
    """Keys out of order on purpose: a layer's tensors and a component's layers do not lie side by side."""
    shapes = {
        "logit_scale": (),
        "visual.conv1.weight": (4, 3, 2, 2),
        "transformer.resblocks.0.ln_1.weight": (5,),
        "visual.transformer.resblocks.0.attn.in_proj_weight": (6, 2),
        "visual.transformer.resblocks.0.attn.in_proj_bias": (6,),
        "visual.bn.running_var": (7,),
        "visual.conv1.bias": (4,),
        "transformer.resblocks.0.mlp.c_fc.weight": (3, 5),
    }
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return state | {"visual.bn.num_batches_tracked": torch.tensor(seed)}


def flat(state: State, keys: list[str]) -> np.ndarray:
    return np.concatenate([state[key].double().numpy().ravel() for key in keys])


def assert_measures(row: Distance, first: State, second: State, keys: list[str]) -> None:
    a, b = flat(first, keys), flat(second, keys)
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert row.elements == len(a)
    assert row.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-12)
    assert row.cosine == pytest.approx(cosine, abs=1e-12)
    assert row.angle == pytest.approx(np.degrees(np.arccos(np.clip(cosine, -1, 1))), abs=1e-5)


def between(a: list[float], b: list[float]) -> Distance:
    pair = ({"x.weight": torch.tensor(values, dtype=torch.float64)} for values in (a, b))
    return distances(*pair)[0]


def test_every_floating_point_tensor_is_measured_in_the_order_of_the_keys() -> None:
    first, second = clip_like(1), clip_like(2)
    rows = distances(first, second)
    assert [row.name for row in rows] == [key for key in first if key != "visual.bn.num_batches_tracked"]
    for row in rows:
        assert_measures(row, first, second, [row.name])


def test_a_layer_is_measured_as_one_vector_not_as_a_mean_of_its_tensors() -> None:
    first, second = clip_like(1), clip_like(2)
    rows = by_layer(distances(first, second))
    members = {
        "logit_scale": ["logit_scale"],
        "visual.conv1": ["visual.conv1.weight", "visual.conv1.bias"],
        "transformer.resblocks.0": [
            "transformer.resblocks.0.ln_1.weight",
            "transformer.resblocks.0.mlp.c_fc.weight",
        ],
        "visual.transformer.resblocks.0": [
            "visual.transformer.resblocks.0.attn.in_proj_weight",
            "visual.transformer.resblocks.0.attn.in_proj_bias",
        ],
        "visual.bn": ["visual.bn.running_var"],
    }
    assert [row.name for row in rows] == list(members)
    for row in rows:
        assert_measures(row, first, second, members[row.name])
        assert row.component == ("encoder" if row.name.startswith("visual") else "head")


def test_components_are_encoder_then_head() -> None:
    first, second = clip_like(1), clip_like(2)
    rows = by_component(distances(first, second))
    assert [row.name for row in rows] == ["encoder", "head"]
    floating = [key for key, value in first.items() if value.is_floating_point()]
    assert_measures(rows[0], first, second, [key for key in floating if key.startswith("visual.")])
    assert_measures(rows[1], first, second, [key for key in floating if not key.startswith("visual.")])


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=20))
def test_figures_stay_in_range_and_the_angle_is_symmetric(values: list[tuple[float, float]]) -> None:
    a, b = (list(column) for column in zip(*values, strict=True))
    forward, backward = between(a, b), between(b, a)
    assert forward.relative >= 0
    assert forward.angle == backward.angle
    assert forward.cosine == backward.cosine
    if forward.angle is not None and forward.cosine is not None:
        assert 0 <= forward.angle <= 180
        assert -1 <= forward.cosine <= 1
        assert math.cos(math.radians(forward.angle)) == pytest.approx(forward.cosine, abs=1e-6)


@pytest.mark.parametrize(
    ("degrees", "length"),
    [(degrees, 1.0) for degrees in (1e-9, 1e-6, 1e-3, 1.0, 59.0, 61.0, 90.0, 179.0, 179.999)]
    + [(degrees, 1.5) for degrees in (1e-3, 1.0, 60.0, 179.999)]
    + [(degrees, 1e20) for degrees in (1e-3, 60.0, 179.999)],
)
def test_angles_of_any_size_are_resolved(degrees: float, length: float) -> None:
    angle = math.radians(degrees)
    row = between([1.0, 0.0], [length * math.cos(angle), length * math.sin(angle)])
    assert row.angle == pytest.approx(degrees, rel=1e-5)


def test_equal_tensors_have_no_distance_and_no_angle_between_them() -> None:
    row = between([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (row.relative, row.angle) == (0.0, 0.0)


def test_scaled_and_opposite_tensors() -> None:
    double, opposite = between([3.0, 4.0], [6.0, 8.0]), between([3.0, 4.0], [-3.0, -4.0])
    assert (double.relative, double.cosine, double.angle) == (1.0, 1.0, 0.0)
    assert (opposite.relative, opposite.cosine, opposite.angle) == (2.0, -1.0, 180.0)


@pytest.mark.parametrize(
    ("a", "b", "relative"), [([0.0], [0.0], 0.0), ([0.0, 0.0], [1.0, 2.0], math.inf), ([1.0, 2.0], [0.0, 0.0], 1.0)]
)
def test_zero_tensors_have_no_angle(a: list[float], b: list[float], relative: float) -> None:
    row = between(a, b)
    assert (row.relative, row.cosine, row.angle) == (relative, None, None)


def test_half_precision_is_measured_in_float64() -> None:
    first = {"x": torch.full((3000,), 0.1, dtype=torch.float16)}
    second = {"x": torch.full((3000,), 0.2, dtype=torch.float16)}
    assert_measures(distances(first, second)[0], first, second, ["x"])


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("visual.transformer.resblocks.3.attn.in_proj_weight", "visual.transformer.resblocks.3"),
        ("visual.transformer.resblocks.11.ln_1.bias", "visual.transformer.resblocks.11"),
        ("visual.conv1.weight", "visual.conv1"),
        ("visual.class_embedding", "visual.class_embedding"),
        ("visual.proj", "visual.proj"),
        ("visual.attnpool.q_proj.bias", "visual.attnpool.q_proj"),
        ("visual.attnpool.positional_embedding", "visual.attnpool.positional_embedding"),
        ("visual.bn1.running_mean", "visual.bn1"),
        ("visual.layer1.0.bn2.running_var", "visual.layer1.0"),
        ("visual.trunk.stages.2.blocks.7.mlp.fc1.weight", "visual.trunk.stages.2"),
        ("visual.head.in_proj_weight", "visual.head"),
        ("transformer.resblocks.0.mlp.c_fc.weight", "transformer.resblocks.0"),
        ("token_embedding.weight", "token_embedding"),
        ("positional_embedding", "positional_embedding"),
        ("logit_scale", "logit_scale"),
        ("head.weight", "head"),
        ("weight", "weight"),
    ],
)
def test_layers_are_blocks_modules_or_parameters_of_a_tower(key: str, layer: str) -> None:
    assert layer_of(key) == layer


@pytest.mark.parametrize(
    ("key", "component"),
    [
        ("visual.conv1.weight", "encoder"),
        ("visual.head.weight", "encoder"),
        ("head.weight", "head"),
        ("logit_scale", "head"),
        ("transformer.resblocks.0.ln_1.weight", "head"),
        ("visually.weight", "head"),
    ],
)
def test_the_image_side_is_the_encoder(key: str, component: str) -> None:
    assert component_of(key) == component


def build_clip() -> nn.Module:
    logging.disable(logging.WARNING)
    try:
        return open_clip.CLIP(
            8,
            {"image_size": 28, "layers": 3, "width": 16, "head_width": 8, "patch_size": 14},
            {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 2},
        )
    finally:
        logging.disable(logging.NOTSET)


def test_layers_of_an_open_clip_model() -> None:
    layers = {layer_of(key) for key in build_clip().state_dict()}
    assert layers == {
        *(f"visual.{name}" for name in ("class_embedding", "positional_embedding", "proj", "conv1")),
        *("visual.ln_pre", "visual.ln_post"),
        *(f"visual.transformer.resblocks.{block}" for block in range(3)),
        *(f"transformer.resblocks.{block}" for block in range(2)),
        *("positional_embedding", "text_projection", "logit_scale", "token_embedding", "ln_final"),
    }


def test_layers_of_a_timm_model() -> None:
    keys = timm.create_model("resnet18", pretrained=False).state_dict()
    assert {layer_of(key) for key in keys if not key.endswith("num_batches_tracked")} == {
        *("conv1", "bn1", "fc"),
        *(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)),
    }
