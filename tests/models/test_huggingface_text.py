"""Text towers from Hugging Face: a pair of BiomedCLIP's kind is read, checked, merged and scored as by open_clip."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file

from pipeline.errors import CheckpointError, PipelineError, ProblemsError
from pipeline.models.architectures import load_architecture
from pipeline.models.class_embeddings import ClassHead, TextTower, fill_templates
from pipeline.models.head_curve import fit_head_curve
from pipeline.models.scorer import Scorer
from pipeline.models.sources import SourceModels, load_sources
from tests.models.biomedclip import (
    CLASS_NAMES,
    CONTEXT,
    PIXELS,
    POSITION_IDS,
    as_published,
    make_repository,
    plain_model,
    random_state,
)
from tests.models.factory import State, along, blended, write_checkpoint

TEMPLATES = ["a medical image of {}."]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def states(repository: Path) -> list[State]:
    """Generalist and expert."""
    return [random_state(repository, 1), random_state(repository, 2)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, repository: Path, states: list[State]) -> SourceModels:
    folder = tmp_path_factory.mktemp("pair")
    torch.save(as_published(states[0]), folder / "generalist.bin")
    write_checkpoint(folder / "expert.safetensors", states[1])
    names = {"generalist": "generalist.bin", "expert": "expert.safetensors"}
    return load_sources(str(repository), {name: str(folder / file) for name, file in names.items()})


@pytest.fixture(scope="module")
def pixels() -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (3, PIXELS, PIXELS, 3), dtype=np.uint8)


def text_tower(models: SourceModels, *, merged: bool = True) -> TextTower:
    tokens = models.architecture.tokenize(fill_templates(CLASS_NAMES, TEMPLATES))  # type: ignore[union-attr]
    return TextTower(models, tokens, len(CLASS_NAMES), merged=merged, device=CPU)


@torch.inference_mode()
def plain_logits(repository: Path, state: State, pixels: np.ndarray[Any, Any], text: State | None = None) -> np.ndarray:
    """open_clip's own logits of whole models; ``text`` has the text tower and the scale where those are another's."""
    model, reader = plain_model(repository), plain_model(repository)
    model.load_state_dict(state, strict=True)
    reader.load_state_dict(state if text is None else text, strict=True)
    tokenizer = HFTokenizer(str(repository.parent / "text"), context_length=CONTEXT)
    classes = reader.encode_text(tokenizer([TEMPLATES[0].format(name) for name in CLASS_NAMES]), normalize=True)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor(open_clip.OPENAI_DATASET_STD)
    images = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    features = model.encode_image(images, normalize=True)
    return (reader.logit_scale.exp() * features @ classes.T).numpy()


def assert_near(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_keys_are_those_of_the_published_file(states: list[State]) -> None:
    keys = states[0].keys()
    assert {
        "visual.trunk.cls_token",
        "visual.trunk.patch_embed.proj.weight",
        "visual.trunk.blocks.0.attn.qkv.weight",
        "visual.head.proj.weight",
        "text.transformer.embeddings.word_embeddings.weight",
        "text.transformer.encoder.layer.0.attention.self.query.weight",
        "text.proj.0.weight",
        "text.proj.2.weight",
        "logit_scale",
    } <= keys
    assert POSITION_IDS not in keys


def test_sources_and_merges_score_as_open_clip_does(
    repository: Path, states: list[State], models: SourceModels, pixels: np.ndarray
) -> None:
    scorer, tower = Scorer(models, device=CPU, precision="fp32"), text_tower(models)
    heads = [tower.head(along(0.0)), tower.head(along(1.0))]
    plain = [plain_logits(repository, state, pixels) for state in states]
    for found, expected in zip(scorer.source_logits(pixels, heads, tile=3), plain, strict=True):
        assert_near(found, expected)
    assert np.abs(plain[0] - plain[1]).max() > 0.1 * np.abs(plain[0]).max(), "the ends are apart"
    found = scorer.merged_logits(pixels, along(0.6), tower.head(along(0.6)), tile=3)
    assert_near(found, plain_logits(repository, blended(states, along(0.6)), pixels))


def test_the_generalists_text_tower_may_serve_every_lambda(
    repository: Path, states: list[State], models: SourceModels, pixels: np.ndarray
) -> None:
    head = text_tower(models, merged=False).head(along(0.7))
    found = Scorer(models, device=CPU, precision="fp32").merged_logits(pixels, along(0.7), head, tile=3)
    assert_near(found, plain_logits(repository, blended(states, along(0.7)), pixels, text=states[0]))


def test_every_image_by_its_own_lambda_is_scored_as_by_its_own_merge(models: SourceModels, pixels: np.ndarray) -> None:
    lambdas = [0.0, 0.3, 0.9]
    scorer, tower = Scorer(models, device=CPU, precision="fp32"), text_tower(models)
    heads = [tower.head(along(lam)) for lam in lambdas]
    found = scorer.per_sample_logits(pixels, lambdas, heads, ends=("generalist", "expert"), tile=3)
    one_by_one = [
        scorer.merged_logits(pixels[row : row + 1], along(lam), heads[row], tile=1) for row, lam in enumerate(lambdas)
    ]
    assert_near(found, np.concatenate(one_by_one))


def test_class_embeddings_are_a_curve_within_the_tolerance(models: SourceModels) -> None:
    tower = text_tower(models)
    curve = fit_head_curve(tower, tolerance=1e-4, weights_at=along)
    assert curve is not None
    assert curve.error <= 1e-4
    for lam in (0.11, 0.48, 0.93):
        assert largest_change(curve.at(lam), tower.head(along(lam))) <= 1e-4


def largest_change(a: ClassHead, b: ClassHead) -> float:
    return float((a.logit_scale * a.embeddings_CD - b.logit_scale * b.embeddings_CD).norm(dim=-1).max())


def test_prompts_are_whole_or_refused(repository: Path) -> None:
    architecture = load_architecture(str(repository))
    fits = " ".join(["cell"] * (CONTEXT - 2))
    assert architecture.tokenize([fits]).shape == (1, CONTEXT)  # type: ignore[union-attr]
    with pytest.raises(PipelineError, match=f"is longer than the model's {CONTEXT} tokens"):
        architecture.tokenize([f"{fits} cell"])  # type: ignore[union-attr]


def test_what_the_configuration_states_about_preprocessing_counts(models: SourceModels) -> None:
    assert models.preprocessing.mean == (0.5, 0.4, 0.3)
    assert models.preprocessing.std == open_clip.OPENAI_DATASET_STD


def test_missing_and_unexpected_keys_are_listed_together(repository: Path, states: list[State], tmp_path: Path) -> None:
    broken = {key: value for key, value in states[0].items() if key != "text.proj.0.weight"}
    broken["text.transformer.pooler.dense.bias"] = torch.zeros(24)
    files = {"generalist": states[0], "expert": broken}
    paths = {name: str(write_checkpoint(tmp_path / f"{name}.safetensors", state)) for name, state in files.items()}
    with pytest.raises(ProblemsError) as caught:
        load_sources(str(repository), paths)
    assert "1 missing keys (text.proj.0.weight), 1 unexpected keys (text.transformer.pooler.dense.bias)" in str(
        caught.value
    )


def test_a_text_tower_that_differs_only_in_its_heads_is_refused(
    repository: Path, states: list[State], tmp_path: Path
) -> None:
    other = load_architecture(str(make_repository(tmp_path / "other", num_attention_heads=4)))
    path = write_checkpoint(tmp_path / "expert.safetensors", states[1], {"architecture": other.config})
    generalist = write_checkpoint(tmp_path / "generalist.safetensors", states[0])
    with pytest.raises(ProblemsError, match=r"hf_config .*'num_attention_heads': 4.* instead of"):
        load_sources(str(repository), {"generalist": str(generalist), "expert": str(path)})


def test_a_folder_has_one_digest_wherever_it_lies_and_another_when_its_shape_changes(
    repository: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(repository.parent, copied)
    moved = load_architecture(str(copied / repository.name))
    assert moved.digest == load_architecture(str(repository)).digest
    assert moved.build().text.transformer.config.num_attention_heads == 2  # type: ignore[union-attr]
    changed = load_architecture(str(make_repository(tmp_path / "changed", num_attention_heads=4)))
    assert changed.digest != moved.digest
    assert changed.build().text.transformer.config.num_attention_heads == 4  # type: ignore[union-attr]


def test_without_transformers_one_line_names_the_extra(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError) as caught:
        load_architecture(str(repository))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"pair.architecture: {repository}: its text tower")
    assert line.endswith("needs transformers; in the checkout: pip install -c constraints.txt '.[biomedclip]'")


@pytest.mark.parametrize("content", [None, {"model_type": "no-such-model"}], ids=["absent", "unknown"])
def test_a_text_tower_that_cannot_be_had_is_one_line(tmp_path: Path, content: dict[str, Any] | None) -> None:
    path = make_repository(tmp_path / "repository")
    configuration = path.parent / "text" / "config.json"
    configuration.unlink()
    if content is not None:
        configuration.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        load_architecture(str(path)).build()  # type: ignore[union-attr]
    (line,) = str(caught.value).splitlines()
    assert line.startswith("pair.architecture: ")


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    path = make_repository(tmp_path / "repository")
    (path.parent / "text" / "vocab.txt").unlink()
    with pytest.raises(PipelineError, match="'a cell' and 'a tumour' are the same tokens to this model"):
        load_architecture(str(path)).tokenize(["a cell", "a tumour"])  # type: ignore[union-attr]


def test_a_written_checkpoint_is_one_that_open_clip_loads(
    repository: Path, states: list[State], models: SourceModels, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "merged.safetensors", dict(models.states["expert"]))
    plain_model(repository).load_state_dict(load_file(path), strict=True)
    assert all(torch.equal(value, models.states["expert"][key]) for key, value in states[1].items())
