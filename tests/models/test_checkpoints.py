"""Files as users bring them: every layout that is recognised, and everything that must be refused."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import CheckpointError
from pipeline.models.architectures import Architecture, load_architecture
from pipeline.models.checkpoints import (
    Checkpoint,
    checkpoint_problems,
    load_checkpoint,
    read_state,
)
from pipeline.models.publications import Publication
from pipeline.references import is_file_reference
from tests.models.factory import TINY, State, changed, random_state, write_checkpoint, write_config

OPENAI_EXTRAS = {"input_resolution": 28, "context_length": 20, "vocab_size": 49408}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    return write_config(folder)


@pytest.fixture(scope="module")
def architecture(config: Path) -> Architecture:
    return load_architecture(str(config))


@pytest.fixture(scope="module")
def model(architecture: Architecture) -> torch.nn.Module:
    return architecture.build()


@pytest.fixture(scope="module")
def state(config: Path) -> State:
    return random_state(config, seed=1)


def save_torch(value: object) -> Callable[[Path, State], Path]:
    return lambda path, state: torch.save(value(state), path) or path  # type: ignore[operator]


LAYOUTS: dict[str, tuple[str, Callable[[State], object]]] = {
    "safetensors": ("x.safetensors", lambda state: state),
    "safetensors-module": ("x.safetensors", lambda state: {f"module.{key}": value for key, value in state.items()}),
    "torch": ("x.pt", lambda state: state),
    "torch-pth": ("x.pth", lambda state: state),
    "torch-state-dict": ("x.ckpt", lambda state: {"epoch": 3, "state_dict": state}),
    "torch-module": ("x.pt", lambda state: {f"module.{key}": value for key, value in state.items()}),
    "torch-state-dict-module": (
        "x.pt",
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "name": "run"},
    ),
    "openai": ("x.pt", lambda state: state | {key: torch.tensor(value) for key, value in OPENAI_EXTRAS.items()}),
    "reversed": ("x.safetensors", lambda state: dict(reversed(state.items()))),
    "reversed-torch": ("x.bin", lambda state: dict(reversed(state.items()))),
}


def write_layout(path: Path, content: object) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_come_back_whole_from_every_layout(
    tmp_path: Path, layout: str, architecture: Architecture, model: torch.nn.Module, state: State
) -> None:
    name, arrange = LAYOUTS[layout]
    path = write_layout(tmp_path / name, arrange(state))
    loaded = load_checkpoint(str(path), architecture, model)
    assert loaded.state.keys() == state.keys()
    assert all(torch.equal(loaded.state[key], state[key]) for key in state)
    assert checkpoint_problems("pair.expert", loaded, architecture, model) == []


def test_the_digest_depends_on_weights_and_not_on_the_file(
    tmp_path: Path, architecture: Architecture, model: torch.nn.Module, state: State
) -> None:
    def digest(name: str, content: object) -> str:
        return load_checkpoint(str(write_layout(tmp_path / name, content)), architecture, model).digest()

    digests = {digest(f"{layout}-{name}", arrange(state)) for layout, (name, arrange) in LAYOUTS.items()}
    assert len(digests) == 1
    nudged = dict(state) | {"visual.proj": state["visual.proj"].clone()}
    nudged["visual.proj"][0, 0] = torch.nextafter(nudged["visual.proj"][0, 0], torch.tensor(torch.inf))
    assert digest("nudged.pt", nudged) not in digests


def test_the_digest_tells_names_shapes_and_dtypes_apart() -> None:
    def digest(**state: torch.Tensor) -> str:
        return Checkpoint("x", state, Publication()).digest()

    zeros = torch.zeros(2, 6)
    variants = [
        digest(a=zeros),
        digest(b=zeros),
        digest(a=zeros.reshape(6, 2)),
        digest(a=zeros.to(torch.float64)),
        digest(a=zeros.to(torch.int32)),
        digest(a=zeros, b=torch.zeros(0)),
        digest(a=zeros, b=torch.zeros(())),
    ]
    assert len(set(variants)) == len(variants)
    assert digest(a=zeros.t()) == digest(a=zeros.t().contiguous())


def test_half_precision_weights_are_read_as_float32(
    tmp_path: Path, architecture: Architecture, model: torch.nn.Module, state: State
) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    loaded = load_checkpoint(str(write_checkpoint(tmp_path / "x.safetensors", half)), architecture, model)
    assert all(torch.equal(loaded.state[key], value.to(loaded.state[key].dtype)) for key, value in half.items())
    assert checkpoint_problems("pair.expert", loaded, architecture, model) == []


def test_an_unprefixed_text_tower_is_converted_for_a_custom_text_model(tmp_path: Path, config: Path) -> None:
    custom = load_architecture(str(write_config(tmp_path, changed(TINY, custom_text=True), "custom.json")))
    model = custom.build()
    state = random_state(config, seed=1)
    assert not any(key.startswith("text.") for key in state)
    loaded = load_checkpoint(str(write_checkpoint(tmp_path / "x.safetensors", state)), custom, model)
    assert checkpoint_problems("pair.expert", loaded, custom, model) == []
    model.load_state_dict(loaded.state)
    plain = load_architecture(str(config)).build()
    plain.load_state_dict(state)
    tokens = open_clip.tokenize(["a photo of a basophil"], context_length=20)
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_text(tokens), plain.encode_text(tokens))


def test_what_the_card_says_travels_with_the_weights(
    tmp_path: Path, architecture: Architecture, model: torch.nn.Module, state: State
) -> None:
    card = {"architecture": changed(TINY, quick_gelu=True), "preprocessing": {"mean": [0.1, 0.2, 0.3]}}
    loaded = load_checkpoint(str(write_checkpoint(tmp_path / "x.safetensors", state, card)), architecture, model)
    assert loaded.publication.quick_gelu is True
    assert loaded.publication.architecture == card["architecture"]
    assert loaded.publication.preprocessing == card["preprocessing"]
    plain = load_checkpoint(str(write_checkpoint(tmp_path / "y.safetensors", state)), architecture, model)
    assert plain.publication == Publication()


class Payload:
    """What an attacker puts into a checkpoint: code that runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("format_name", ["torch", "torch-legacy", "pickle", "inside-state-dict"])
def test_code_in_a_torch_file_is_refused_and_does_not_run(tmp_path: Path, state: State, format_name: str) -> None:
    marker, path = tmp_path / "code-ran", tmp_path / "x.pt"
    content = {"state_dict": {**state, "payload": Payload(marker)}}
    if format_name == "pickle":
        path.write_bytes(pickle.dumps(Payload(marker)))
    elif format_name == "inside-state-dict":
        torch.save(content, path)
    else:
        torch.save(Payload(marker), path, _use_new_zipfile_serialization=format_name == "torch")
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists(), "the payload is live"
    marker.unlink()
    with pytest.raises(CheckpointError, match=r"x\.pt: cannot be read as plain weights .* save it as safetensors"):
        read_state(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path, name: str) -> None:
    state = {"a": torch.arange(12.0), "b": torch.zeros(3, 2)}
    path = write_layout(tmp_path / name, state)
    whole = path.read_bytes()
    for length in sorted({*range(80), *range(0, len(whole), 37), len(whole) - 1}):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            read_state(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"a": 3}}, torch.zeros(3), {"epoch": 3}, "weights"])
def test_a_torch_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: holds no state dict"):
        read_state(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "folder/x.pt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint; give a file, an open_clip tag or an hf-hub: id"):
        read_state(tmp_path / name)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.pt").mkdir()
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_state(tmp_path / "x.pt")


def test_an_unknown_tag_is_refused_with_the_known_ones() -> None:
    published = load_architecture("ViT-B-32")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint("openia", published, torch.nn.Identity())
    message = str(caught.value)
    assert "openia: is neither a local file nor an open_clip tag of 'ViT-B-32'" in message
    assert all(tag in message for tag in open_clip.list_pretrained_tags_by_model("ViT-B-32"))


def test_a_tag_for_an_architecture_of_ones_own_is_refused(architecture: Architecture, model: torch.nn.Module) -> None:
    with pytest.raises(CheckpointError, match=r"openai: .* 'tiny\.json' \(it has no published weights\)"):
        load_checkpoint("openai", architecture, model)


@pytest.mark.parametrize(
    ("reference", "is_file"),
    [
        ("openai", False),
        ("laion2b_s34b_b79k", False),
        ("hf-hub:org/model", False),
        ("x.safetensors", True),
        ("x.pt", True),
        ("folder/x", True),
        ("/data/x.ckpt", True),
    ],
)
def test_files_are_told_from_tags_and_hub_ids(reference: str, is_file: bool) -> None:
    assert is_file_reference(reference) is is_file


def test_published_openai_weights_need_the_quickgelu_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module, state: State
) -> None:
    """The tag's own configuration is open_clip's; only the download is replaced by a file that is here."""
    path = write_checkpoint(tmp_path / "x.safetensors", state)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _published: str(path))
    problems = {}
    for name in ("ViT-B-32", "ViT-B-32-quickgelu"):
        named = load_architecture(name)
        checkpoint = load_checkpoint("openai", named, model)
        assert checkpoint.publication.preprocessing["interpolation"] == "bicubic"
        problems[name] = checkpoint_problems("pair.generalist", checkpoint, named, model)
    assert len(problems["ViT-B-32"]) == 1
    assert "pair.generalist: openai: was trained with QuickGELU" in problems["ViT-B-32"][0]
    assert "ends in -quickgelu" in problems["ViT-B-32"][0]
    assert problems["ViT-B-32-quickgelu"] == []


def test_an_unknown_architecture_is_refused_with_near_names() -> None:
    with pytest.raises(CheckpointError, match=r"'ViT-B-33' .*did you mean .*ViT-B-32"):
        load_architecture("ViT-B-33")


def test_slashes_of_openai_names_are_understood() -> None:
    assert load_architecture("ViT-B/32").config == load_architecture("ViT-B-32").config


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "lacks embed_dim, text_cfg, vision_cfg"),
        ('{"embed_dim": 4, "vision_cfg": {}}', "lacks text_cfg"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=said):
        load_architecture(str(path))


def test_an_absent_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.json: cannot be read .*name an existing JSON file"):
        load_architecture(str(tmp_path / "absent.json"))


@pytest.mark.parametrize(
    "entries",
    [
        {"vision_cfg__depth": 3},
        {"vision_cfg": 3},
        {"vision_cfg__layers": "two"},
        {"vision_cfg__patch_size": 0},
        {"vision_cfg__head_width": 0},
        {"text_cfg__heads": 3},
        {"text_cfg__width": None},
        {"embed_dim": "wide"},
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_built_is_refused(tmp_path: Path, entries: dict[str, object]) -> None:
    path = write_config(tmp_path, changed(TINY, **entries), "wrong.json")
    with pytest.raises(CheckpointError, match=r"open_clip cannot build 'wrong\.json'"):
        load_architecture(str(path)).build()


def test_a_file_named_like_a_built_in_architecture_does_not_shadow_it(tmp_path: Path) -> None:
    built_in = open_clip.get_model_config("ViT-B-32")
    own = load_architecture(str(write_config(tmp_path, name="ViT-B-32.json")))
    assert own.build().visual.proj.shape == (32, 16)
    assert open_clip.get_model_config("ViT-B-32") == built_in
    assert load_architecture("ViT-B-32").config == built_in


def test_two_files_of_one_name_keep_their_own_shapes(tmp_path: Path) -> None:
    made = []
    for width in (32, 64):
        folder = tmp_path / str(width)
        folder.mkdir()
        made.append(load_architecture(str(write_config(folder, changed(TINY, vision_cfg__width=width)))))
    assert [architecture.build().visual.proj.shape[0] for architecture in made] == [32, 64]
    assert made[0].digest != made[1].digest


def test_the_digest_of_an_architecture_ignores_the_files_name(tmp_path: Path, architecture: Architecture) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(dict(reversed(TINY.items())), indent=3))
    assert load_architecture(str(other)).digest == architecture.digest
