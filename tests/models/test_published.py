"""Published files: those in the hub's cache serve without a network, and absent ones are named with their origin."""

import json
import socket
from pathlib import Path

import huggingface_hub
import open_clip
import pytest

from pipeline.errors import CheckpointError, ProblemsError
from pipeline.models.architectures import awaited_files, load_architecture
from pipeline.models.published import tag_weights
from pipeline.models.sources import load_sources
from tests.models.biomedclip import CONFIG, make_repository
from tests.models.factory import TINY, random_state, write_checkpoint, write_config

REPOSITORY = "some-lab/tiny-clip"
REFERENCE = f"hf-hub:{REPOSITORY}"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a hub repository in a cache of our own, laid out as the hub client does; no network behind it."""
    folder = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("nothing may be fetched"))
    return snapshot


def test_a_repository_in_the_cache_is_loaded_without_a_network(snapshot: Path, tmp_path: Path) -> None:
    published = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (snapshot / "open_clip_config.json").write_text(json.dumps(published))
    state = random_state(write_config(tmp_path), seed=1)
    write_checkpoint(snapshot / "open_clip_model.safetensors", state)
    assert awaited_files(REFERENCE) == []
    models = load_sources(REFERENCE, {"generalist": REFERENCE})
    assert models.states["generalist"]["logit_scale"].equal(state["logit_scale"])
    assert models.preprocessing.mean == (0.1, 0.2, 0.3)


def test_weights_that_cannot_be_fetched_are_one_line_with_their_origin(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ProblemsError) as caught:
        load_sources(REFERENCE, {"generalist": REFERENCE})
    (line,) = caught.value.problems
    assert line.startswith(
        f"pair.generalist: {REFERENCE}: weights of {REFERENCE!r} cannot be fetched from the Hugging Face hub "
        f"({REPOSITORY}) ("
    )
    assert line.endswith("check the network, or fetch them elsewhere and name the file")


def test_what_a_repository_still_lacks_is_named(snapshot: Path) -> None:
    assert awaited_files(REFERENCE) == [f"architecture from the Hugging Face hub ({REPOSITORY})"]
    text = {**CONFIG["text_cfg"], "hf_model_name": "some-lab/bert", "hf_tokenizer_name": "some-lab/words"}
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**CONFIG, "text_cfg": text}}))
    assert awaited_files(REFERENCE) == [
        "text tower's files from the Hugging Face hub (some-lab/bert)",
        "text tower's files from the Hugging Face hub (some-lab/words)",
    ]


def test_a_repository_without_a_model_configuration_is_one_line(snapshot: Path) -> None:
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match=f"^pair.architecture: {REFERENCE}: lacks embed_dim, text_cfg, "):
        load_architecture(REFERENCE)


def test_local_and_unknown_architectures_await_nothing(tmp_path: Path) -> None:
    assert awaited_files(str(make_repository(tmp_path / "repository"))) == []
    assert awaited_files(str(tmp_path / "absent.json")) == []
    assert awaited_files("no-such-architecture") == []
    assert awaited_files("ViT-B-16-quickgelu") == []


def test_a_tag_names_the_hub_before_an_address(snapshot: Path) -> None:
    openai = tag_weights(open_clip.get_pretrained_cfg("RN50-quickgelu", "openai"))
    assert (openai.where, openai.path) == ("the Hugging Face hub (timm/resnet50_clip.openai)", None)
    address = "https://some.lab/weights/tiny-clip.pt"
    assert tag_weights({"url": address, "hf_hub": ""}).where == address
    named = snapshot / "weights.safetensors"
    named.touch()
    assert tag_weights({"hf_hub": f"{REPOSITORY}/weights.bin"}).path == named
