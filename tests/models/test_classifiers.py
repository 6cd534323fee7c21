"""The oracle is timm itself: its own model, its own forward, its own state dict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.errors import CheckpointError, ProblemsError
from pipeline.models.architectures import AnyArchitecture, load_architecture
from pipeline.models.checkpoints import checkpoint_problems, load_checkpoint, published_layout
from pipeline.models.class_embeddings import LinearHeads
from pipeline.models.classifiers import ClassifierArchitecture, LinearClassifier
from pipeline.models.head_curve import fit_head_curve
from pipeline.models.scorer import Scorer
from pipeline.models.sources import SourceModels, load_sources
from tests.models.factory import (
    RESNET10,
    TINY,
    TINY_VIT,
    State,
    along,
    blended,
    random_state,
    timm_model,
    timm_state,
    write_checkpoint,
    write_config,
    write_pair,
    write_sources,
)

CPU = torch.device("cpu")
CONFIGS = {"vit": TINY_VIT, "resnet": RESNET10}
# One backbone for each place where timm keeps its last layer: head, fc, head.fc, classifier, head.classifier.4, and
# head.fc.fc2 behind a hidden layer of its own.
PLACES = ("test_vit", "test_resnet", "test_byobnet", "lcnet_035", "efficientvit_b0", "caformer_s18")
WEIGHTS = ("weight", "bias")
CORNERS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[*CONFIGS])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def states(config: dict[str, Any]) -> list[State]:
    return [timm_state(config, seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def sites(config: dict[str, Any], states: list[State], tmp_path_factory: pytest.TempPathFactory) -> SourceModels:
    folder = tmp_path_factory.mktemp("sites")
    return write_sources(folder, write_config(folder, config), states)


@pytest.fixture(scope="module")
def pixels(sites: SourceModels) -> np.ndarray:
    size = sites.preprocessing.geometry
    return np.random.default_rng(0).integers(0, 256, (7, size.height, size.width, 3), dtype=np.uint8)


@torch.inference_mode()
def timm_logits(config: dict[str, Any], state: State, pixels: np.ndarray) -> torch.Tensor:
    """Plain timm on pixels normalised as its own transform does."""
    model = timm_model(config)
    model.load_state_dict(state)
    stated = {**model.pretrained_cfg, **config["pretrained_cfg"]}
    mean, std = (torch.tensor(stated[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return model((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)


def test_sources_score_as_timm_does(
    config: dict[str, Any], states: list[State], sites: SourceModels, pixels: np.ndarray
) -> None:
    scorer, source = Scorer(sites, device=CPU, precision="fp32"), LinearHeads(sites)
    found = scorer.source_logits(pixels, [source.head(corner) for corner in CORNERS], tile=4)
    for state, logits in zip(states, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(logits), timm_logits(config, state, pixels), rtol=0, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01, "the models differ"
    assert (source.forward_calls, source.forward_prompts) == (0, 0)


@pytest.mark.parametrize("weights", [(0.2, 0.3, 0.5), (0.7, 0.0, 0.3), (0.0, 1.0, 0.0)])
def test_a_merged_classifier_is_timm_with_averaged_weights(
    config: dict[str, Any], states: list[State], sites: SourceModels, pixels: np.ndarray, weights: tuple[float, ...]
) -> None:
    """Running statistics of a BatchNorm are averaged like weights; its counter stays the first source's."""
    scorer = Scorer(sites, device=CPU, precision="fp32")
    found = scorer.merged_logits(pixels, weights, LinearHeads(sites).head(weights), tile=4)
    expected = timm_logits(config, blended(states, weights), pixels)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


def test_in_low_precision_corners_are_the_sources_and_near_float32(sites: SourceModels, pixels: np.ndarray) -> None:
    coarse, exact = (Scorer(sites, device=CPU, precision=precision) for precision in ("bf16", "fp32"))
    heads = [LinearHeads(sites).head(corner) for corner in CORNERS]
    found, expected = (scorer.source_logits(pixels, heads, tile=4) for scorer in (coarse, exact))
    assert 0 < np.abs(found[0] - expected[0]).max() < 0.1 * np.abs(expected[0]).max()
    for corner, head, logits in zip(CORNERS, heads, found, strict=True):
        np.testing.assert_array_equal(coarse.merged_logits(pixels, corner, head, tile=4), logits)


def test_running_statistics_differ_between_the_sources_and_counters_are_integers() -> None:
    """What the test above says of a BatchNorm it also tests."""
    first, second = (timm_state(RESNET10, seed) for seed in (1, 2))
    assert not torch.equal(first["bn1.running_mean"], second["bn1.running_mean"])
    assert first["bn1.num_batches_tracked"].dtype == torch.int64


def test_encoder_and_head_may_have_weights_of_their_own(
    config: dict[str, Any], states: list[State], sites: SourceModels, pixels: np.ndarray
) -> None:
    encoder, head = (0.2, 0.3, 0.5), (0.6, 0.4, 0.0)
    scorer = Scorer(sites, device=CPU, precision="fp32")
    found = scorer.merged_logits(pixels, encoder, LinearHeads(sites).head(head), tile=4)
    layer = sites.model.classifier
    mixed = blended(states, encoder) | {f"{layer}.{key}": blended(states, head)[f"{layer}.{key}"] for key in WEIGHTS}
    torch.testing.assert_close(torch.from_numpy(found), timm_logits(config, mixed, pixels), rtol=0, atol=1e-5)


def test_two_nodes_are_the_whole_curve_of_a_linear_head(
    tmp_path: Path, config: dict[str, Any], states: list[State], pixels: np.ndarray
) -> None:
    pair = write_pair(tmp_path, write_config(tmp_path, config), *states[:2])
    curve = fit_head_curve(LinearHeads(pair), tolerance=1e-12, weights_at=along)
    assert curve is not None
    assert (curve.lambdas.tolist(), curve.error, curve.cosine) == ([0.0, 1.0], 0.0, False)
    scorer = Scorer(pair, device=CPU, precision="fp32")
    for lam in (0.0, 0.37, 1.0):
        found = scorer.merged_logits(pixels, along(lam), curve.at(lam), tile=4)
        expected = timm_logits(config, blended(states[:2], along(lam)), pixels)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "module.pth"])
def test_files_of_plain_timm_are_read_and_written_whole(
    tmp_path: Path, config: dict[str, Any], states: list[State], suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "safetensors":
        save_file(states[0], path)
    else:
        prefix = "module." if suffix.startswith("module") else ""
        torch.save({"state_dict": {prefix + key: value for key, value in states[0].items()}}, path)
    architecture = load_architecture(str(write_config(tmp_path, config)))
    model = architecture.build()
    loaded = load_checkpoint(str(path), architecture, model)
    assert checkpoint_problems("sources.models.a", loaded, architecture, model) == []
    model.load_state_dict(loaded.state)
    exported = published_layout(model, model.state_dict())
    assert exported.keys() == states[0].keys()
    assert all(torch.equal(exported[key], states[0][key]) for key in exported)
    timm_model(config).load_state_dict(exported)


@pytest.mark.parametrize("name", PLACES)
@torch.inference_mode()
def test_a_backbone_is_cut_right_before_its_last_layer(name: str) -> None:
    model = load_architecture(f"timm:{name}", 3).build()
    assert isinstance(model, LinearClassifier)
    plain = timm.create_model(name, num_classes=3).eval()
    plain.load_state_dict(model.to_published_layout(model.state_dict()))
    images = torch.randn(2, *plain.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images), plain(images), rtol=0, atol=1e-5)
    assert model.visual(images).shape == (2, model.head.in_features)


def test_preprocessing_is_what_timm_states_and_a_card_may_overrule(tmp_path: Path) -> None:
    vit = load_architecture(str(write_config(tmp_path, TINY_VIT)))
    found = vit.preprocessing(vit.build())
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    assert (found.geometry.height, found.geometry.width) == (32, 32)
    assert (found.geometry.interpolation, found.geometry.resize_mode) == ("bilinear", "shortest")
    assert vit.preprocessing(vit.build(), {"mean": [0.1, 0.2, 0.3]}).mean == (0.1, 0.2, 0.3)
    resnet = load_architecture(str(write_config(tmp_path, RESNET10)))
    size = resnet.preprocessing(resnet.build()).geometry
    assert (size.height, size.width) == (40, 32)


def test_a_crop_mode_of_timm_becomes_a_resize_mode(tmp_path: Path) -> None:
    config = RESNET10 | {"pretrained_cfg": {"input_size": [3, 32, 32], "crop_mode": "squash"}}
    architecture = load_architecture(str(write_config(tmp_path, config)))
    assert architecture.preprocessing(architecture.build()).geometry.resize_mode == "squash"


def test_the_same_shape_has_one_digest_by_name_and_by_file(tmp_path: Path) -> None:
    plain = {"architecture": "resnet10t", "num_classes": 4}
    by_file = load_architecture(str(write_config(tmp_path, plain)))
    assert by_file.digest == load_architecture("timm:resnet10t", 4).digest
    assert by_file.digest != load_architecture("timm:resnet10t", 5).digest


def test_the_class_count_may_stand_beside_a_file_without_one(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"architecture": "resnet10t"})
    architecture = load_architecture(str(path), 6)
    assert isinstance(architecture, ClassifierArchitecture)
    assert architecture.classes == 6
    assert architecture.build().head.out_features == 6


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"architecture": "resnet10x"}, r"timm has no architecture 'resnet10x'; did you mean .*resnet10t"),
    "two-heads": ({"architecture": "deit_tiny_distilled_patch16_224"}, r"ends in 2 layers \(head, head_dist\); .*one"),
    "convolution": ({"architecture": "resnetv2_50"}, r"ends in Conv2d; a classifier must end in one linear layer"),
    "argument": ({"model_args": {"depth_of_field": 3}}, r"timm cannot build it \(.*depth_of_field"),
    "channels": ({"model_args": {"in_chans": 1}}, r"timm cannot run it on 40x32 RGB pixels \("),
    "map": ({"model_args": {"global_pool": ""}}, r"timm cannot run it on 40x32 RGB pixels \("),
    "fetching": ({"model_args": {"pretrained": True}}, r"model_args\.pretrained fetches weights"),
    "list": ({"model_args": [3]}, r"model_args must be an object, got \[3\]"),
    "no-count": ({"num_classes": None}, r"how many classes it has is not said; set sources\.classes, or num_classes"),
    "one-class": ({"num_classes": 1}, r"num_classes must be an integer >= 2, got 1"),
    "words": ({"num_classes": "five"}, r"num_classes must be an integer >= 2, got 'five'"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_no_linear_classifier_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    entries, said = UNFIT[case]
    path = write_config(tmp_path, RESNET10 | entries)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_architecture(str(path), key="sources.architecture").build()
    assert str(caught.value).startswith("sources.architecture: 'tiny.json'")
    assert len(str(caught.value).splitlines()) == 1


def test_an_interpolation_that_archives_do_not_know_is_refused(tmp_path: Path) -> None:
    config = RESNET10 | {"pretrained_cfg": {"input_size": [3, 32, 32], "interpolation": "lanczos"}}
    architecture = load_architecture(str(write_config(tmp_path, config)))
    with pytest.raises(CheckpointError, match=r"pair\.architecture: .*'interpolation' must be one of .*'lanczos'"):
        architecture.preprocessing(architecture.build())


def test_another_count_than_the_files_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has 5 classes \(num_classes\), not 7 as is asked"):
        load_architecture(str(write_config(tmp_path, RESNET10)), 7)


def resnet(tmp_path: Path) -> AnyArchitecture:
    return load_architecture(str(write_config(tmp_path, RESNET10)))


def test_weights_of_a_classifier_are_never_fetched(tmp_path: Path) -> None:
    architecture = resnet(tmp_path)
    for reference in ("hf-hub:timm/resnet10t.c3_in1k", "openai"):
        with pytest.raises(CheckpointError, match="is no local file, and weights of an image classifier"):
            load_checkpoint(reference, architecture, architecture.build())


def test_a_clip_checkpoint_and_another_backbone_are_one_line_each_in_the_files_own_names(tmp_path: Path) -> None:
    clip = write_config(tmp_path, TINY, "clip.json")
    files = {
        "a": write_checkpoint(tmp_path / "a.safetensors", timm_state(RESNET10, 1)),
        "b": write_checkpoint(tmp_path / "b.safetensors", random_state(clip, 1), {"architecture": TINY}),
        "c": write_checkpoint(tmp_path / "c.safetensors", timm_state(RESNET10 | {"architecture": "resnet14t"}, 1)),
    }
    references = {name: str(path) for name, path in files.items()}
    path = write_config(tmp_path, RESNET10)
    with pytest.raises(ProblemsError) as caught:
        load_sources(str(path), references, "sources")
    first, *others = caught.value.problems
    assert first.startswith("sources.models.b: ")
    assert "missing keys (bn1.bias, bn1.num_batches_tracked, bn1.running_mean, " in first
    assert "unexpected keys (ln_final.bias, " in first
    assert len(others) >= 1
    assert all(problem.startswith("sources.models.c: ") for problem in others)


def test_a_head_of_another_class_count_is_listed_by_timms_name(tmp_path: Path) -> None:
    architecture = resnet(tmp_path)
    model = architecture.build()
    path = write_checkpoint(tmp_path / "x.safetensors", timm_state(RESNET10 | {"num_classes": 6}, 1))
    (problem,) = checkpoint_problems(
        "pair.expert", load_checkpoint(str(path), architecture, model), architecture, model
    )
    assert "2 tensors have another shape" in problem
    assert "fc.bias (6,) instead of (5,)" in problem


def test_settings_that_no_shape_shows_are_refused_by_the_card(tmp_path: Path) -> None:
    """Another number of attention heads leaves every shape as it is."""
    other = json.loads(json.dumps(TINY_VIT))
    other["model_args"]["num_heads"] = 3
    architecture = load_architecture(str(write_config(tmp_path, TINY_VIT)))
    model = architecture.build()
    for card, said in ((TINY_VIT, None), (other, "model_args.num_heads 3 instead of 2")):
        path = write_checkpoint(tmp_path / "x.safetensors", timm_state(TINY_VIT, 1), {"architecture": card})
        problems = checkpoint_problems("x", load_checkpoint(str(path), architecture, model), architecture, model)
        assert len(problems) == (said is not None)
        assert said is None or said in problems[0]
