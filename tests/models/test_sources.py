"""Sources that must not be merged, each refused with a line that says why, before any hour is spent."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import CheckpointError, ProblemsError
from pipeline.models.sources import SourceModels, load_sources
from tests.models.factory import TINY, State, changed, random_state, write_checkpoint, write_config

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)


@dataclass(frozen=True)
class Files:
    config: Path
    generalist: Path
    expert: Path

    def load(self) -> SourceModels:
        return load_sources(str(self.config), {"generalist": str(self.generalist), "expert": str(self.expert)})

    def problems(self) -> tuple[str, ...]:
        with pytest.raises(ProblemsError) as caught:
            self.load()
        assert all(len(line.splitlines()) == 1 for line in caught.value.problems)
        return caught.value.problems


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, State]:
    config = write_config(tmp_path_factory.mktemp("pair"))
    return random_state(config, seed=1), random_state(config, seed=2)


@pytest.fixture
def write(tmp_path: Path, states: tuple[State, State]) -> Callable[..., Files]:
    def write_pair(
        edit: Callable[[State], State | None] = lambda state: state,
        cards: tuple[dict[str, Any] | None, dict[str, Any] | None] = (None, None),
        config: dict[str, Any] = TINY,
    ) -> Files:
        """A pair whose expert is ``edit``ed."""
        generalist, expert = states[0], dict(states[1])
        edited = edit(expert)
        return Files(
            write_config(tmp_path, config),
            write_checkpoint(tmp_path / "generalist.safetensors", generalist, cards[0]),
            write_checkpoint(tmp_path / "expert.safetensors", expert if edited is None else edited, cards[1]),
        )

    return write_pair


def set_value(key: str, value: float) -> Callable[[State], State]:
    def edit(state: State) -> State:
        damaged = state[key].clone()
        damaged.view(-1)[-1] = value
        return state | {key: damaged}

    return edit


def test_a_fitting_pair_is_loaded_with_weights_digests_and_preprocessing(
    write: Callable[..., Files], states: tuple[State, State]
) -> None:
    pair = write().load()
    assert pair.names == ("generalist", "expert")
    for found, given in zip(pair.states.values(), states, strict=True):
        assert found.keys() == given.keys()
        assert all(torch.equal(found[key], given[key]) for key in given)
    assert [*pair.digests] == ["generalist", "expert"]
    assert len(set(pair.digests.values())) == 2
    assert (pair.preprocessing.geometry.height, pair.preprocessing.geometry.width) == (28, 28)
    assert pair.preprocessing.mean == OPENAI_MEAN


def test_a_checkpoint_of_another_architecture_is_one_line_with_missing_and_unexpected_keys(
    tmp_path: Path, write: Callable[..., Files]
) -> None:
    other = write_config(tmp_path, changed(TINY, vision_cfg__layers=3, text_cfg__layers=2), "other.json")
    (problem,) = write(lambda _state: random_state(other, seed=3)).problems()
    assert "pair.expert" in problem
    assert "expert.safetensors: does not fit architecture 'tiny.json': 0 missing keys (none), " in problem
    assert "24 unexpected keys (transformer.resblocks.1.attn.in_proj_bias, " in problem
    assert problem.endswith("name the architecture it was made with")


def test_missing_and_unexpected_keys_are_listed_together(write: Callable[..., Files]) -> None:
    def rename(state: State) -> None:
        state["visual.projection"] = state.pop("visual.proj")
        del state["ln_final.bias"]

    (problem,) = write(rename).problems()
    assert "2 missing keys (ln_final.bias, visual.proj), 1 unexpected keys (visual.projection)" in problem


def test_tensors_of_another_shape_are_listed_with_both_shapes(tmp_path: Path, write: Callable[..., Files]) -> None:
    wide = write_config(tmp_path, changed(TINY, embed_dim=24), "wide.json")
    (problem,) = write(lambda _state: random_state(wide, seed=3)).problems()
    assert "2 tensors have another shape than architecture 'tiny.json'" in problem
    assert "visual.proj (32, 24) instead of (32, 16)" in problem
    assert "text_projection (16, 24) instead of (16, 16)" in problem


def test_tensors_of_another_dtype_are_listed(write: Callable[..., Files]) -> None:
    (problem,) = write(lambda state: state | {"visual.proj": state["visual.proj"].to(torch.int32)}).problems()
    assert "1 tensors have another dtype (visual.proj torch.int32 instead of torch.float32)" in problem


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["visual.proj", "logit_scale", "token_embedding.weight"])
def test_weights_that_are_not_finite_are_named(write: Callable[..., Files], key: str, value: float) -> None:
    (problem,) = write(set_value(key, value)).problems()
    assert f"1 tensors hold NaN or infinite values ({key}); the file is damaged" in problem
    assert problem.startswith("pair.expert: ")


@pytest.mark.parametrize(
    ("quick", "said"),
    [
        ("checkpoint", "was trained with QuickGELU, but architecture 'tiny.json' uses GELU"),
        ("architecture", "was trained with GELU, but architecture 'tiny.json' uses QuickGELU"),
    ],
)
def test_quickgelu_weights_are_refused_for_gelu_and_the_other_way(
    write: Callable[..., Files], quick: str, said: str
) -> None:
    gelu, quick_gelu = TINY, changed(TINY, quick_gelu=True)
    stated, config = (quick_gelu, gelu) if quick == "checkpoint" else (gelu, quick_gelu)
    (problem,) = write(cards=(None, {"architecture": stated}), config=config).problems()
    assert said in problem
    assert problem.startswith("pair.expert: ")


def test_towers_that_differ_only_in_their_heads_are_refused(write: Callable[..., Files]) -> None:
    """Another number of attention heads leaves every shape as it is: only the card can tell."""
    other = {"architecture": changed(TINY, vision_cfg__head_width=8)}
    (problem,) = write(cards=({"architecture": TINY}, other)).problems()
    assert problem.startswith("pair.expert: ")
    assert "vision_cfg.head_width 8" in problem
    assert "16" in problem


def test_preprocessing_with_another_mean_is_refused(write: Callable[..., Files]) -> None:
    ours, theirs = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, {"mean": [0.4, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (problem,) = write(cards=({"preprocessing": ours}, {"preprocessing": theirs})).problems()
    assert "pair: preprocessing differs: mean is [0.5, 0.5, 0.5] for the generalist and [0.4, 0.5, 0.5]" in problem


@pytest.mark.parametrize("stating", [(True, True), (True, False), (False, True)])
def test_preprocessing_that_one_end_states_is_used(write: Callable[..., Files], stating: tuple[bool, bool]) -> None:
    card = {"preprocessing": {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}}
    pair = write(cards=tuple(card if states else None for states in stating)).load()
    assert pair.preprocessing.mean == (0.5, 0.4, 0.3)
    assert pair.preprocessing.std == (0.1, 0.2, 0.3)


def test_different_tokenizers_are_refused(write: Callable[..., Files]) -> None:
    cards = [{"architecture": changed(TINY, text_cfg__hf_tokenizer_name=name)} for name in ("org/one", "org/another")]
    (problem,) = write(cards=tuple(cards)).problems()
    assert "pair: tokenizer differs: text_cfg.hf_tokenizer_name is 'org/one' for the generalist" in problem


def test_all_problems_of_both_ends_come_at_once(tmp_path: Path, write: Callable[..., Files]) -> None:
    quick = {"architecture": changed(TINY, quick_gelu=True, text_cfg__tokenizer_kwargs={"clean": "lower"})}
    cards = (
        {"architecture": TINY, "preprocessing": {"mean": [0.1] * 3}},
        quick | {"preprocessing": {"mean": [0.2] * 3}},
    )

    def damage(state: State) -> State:
        state = set_value("ln_final.weight", float("nan"))(state)
        state["visual.projection"] = state.pop("visual.proj")
        return state | {"text_projection": torch.zeros(16, 3), "logit_scale": torch.tensor(3)}

    problems = write(damage, cards=cards).problems()
    for said in (
        "1 missing keys (visual.proj), 1 unexpected keys (visual.projection)",
        "text_projection (16, 3) instead of (16, 16)",
        "logit_scale torch.int64 instead of torch.float32",
        "NaN or infinite values (ln_final.weight)",
        "QuickGELU",
        "preprocessing differs: mean",
        "tokenizer differs: text_cfg.tokenizer_kwargs",
    ):
        assert sum(said in problem for problem in problems) == 1, said
    # Keys and shapes that do not fit are one line: both say that another architecture made the file.
    assert len(problems) == 6


def test_both_absent_files_are_named_at_once(tmp_path: Path) -> None:
    files = Files(write_config(tmp_path), tmp_path / "one.safetensors", tmp_path / "two.pt")
    problems = files.problems()
    assert [problem.split(":")[0] for problem in problems] == ["pair.generalist", "pair.expert"]
    assert all("no such checkpoint" in problem for problem in problems)


def test_an_unreadable_end_does_not_hide_the_other_ends_problems(tmp_path: Path, write: Callable[..., Files]) -> None:
    files = write(set_value("visual.proj", float("nan")))
    files.generalist.write_bytes(files.generalist.read_bytes()[:100])
    first, second = files.problems()
    assert "generalist.safetensors: is not a whole safetensors file" in first
    assert "NaN" in second


def test_an_unknown_architecture_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pair\.architecture: 'ViT-B-23' .*did you mean"):
        load_sources("ViT-B-23", {"generalist": str(tmp_path / "absent.pt")})


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, states: tuple[State, State]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("three")
    third = random_state(write_config(folder), seed=3)
    given = dict(zip(("site-c", "site-a", "site-b"), (*states, third), strict=True))
    return {name: write_checkpoint(folder / f"{name}.safetensors", state) for name, state in given.items()}


def references(files: dict[str, Path], **others: Path) -> dict[str, str]:
    return {name: str(path) for name, path in {**files, **others}.items()}


def three_problems(config: Path, files: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(ProblemsError) as caught:
        load_sources(str(config), files, "sources")
    return caught.value.problems


def test_any_number_of_sources_is_loaded_in_the_manifests_order(tmp_path: Path, three: dict[str, Path]) -> None:
    config = write_config(tmp_path)
    for count in (1, 2, 3):
        names = [*three][:count]
        models = load_sources(str(config), references({name: three[name] for name in names}), "sources")
        assert models.names == tuple(names)
        for name in names:
            given = load_file(three[name])
            assert all(torch.equal(models.states[name][key], given[key]) for key in given)
        assert len(set(models.digests.values())) == count


def test_each_unfit_source_is_named_by_its_manifest_key(tmp_path: Path, three: dict[str, Path]) -> None:
    config = write_config(tmp_path)
    other = write_config(tmp_path, changed(TINY, vision_cfg__layers=3), "other.json")
    deeper = write_checkpoint(tmp_path / "deeper.safetensors", random_state(other, seed=4))
    first, second = three_problems(config, references(three, **{"site-a": deeper, "site-b": tmp_path / "absent.pt"}))
    assert first.startswith(f"sources.models.site-a: {deeper}: does not fit architecture 'tiny.json': 0 missing keys")
    assert second.startswith(f"sources.models.site-b: {tmp_path / 'absent.pt'}: no such checkpoint")


def test_a_source_that_contradicts_the_first_one_that_states_something_is_named(
    tmp_path: Path, three: dict[str, Path]
) -> None:
    """The first source states nothing here: agreement with it alone would say nothing."""
    cards = {"site-a": {"preprocessing": {"mean": [0.5] * 3}}, "site-b": {"preprocessing": {"mean": [0.4] * 3}}}
    stating = {
        name: write_checkpoint(tmp_path / f"{name}.safetensors", load_file(three[name]), card)
        for name, card in cards.items()
    }
    (problem,) = three_problems(write_config(tmp_path), references(three, **stating))
    assert problem == (
        "sources: preprocessing differs: mean is [0.5, 0.5, 0.5] for 'site-a' and [0.4, 0.4, 0.4] for 'site-b'; "
        "all must see the same pixels"
    )


def test_an_unknown_architecture_of_sources_is_named_by_their_section() -> None:
    with pytest.raises(CheckpointError, match=r"^sources\.architecture: 'ViT-B-23' .*did you mean"):
        load_sources("ViT-B-23", {"site-a": "absent.pt"}, "sources")


def test_a_single_model_keeps_architecture_and_preprocessing(tmp_path: Path, three: dict[str, Path]) -> None:
    models = load_sources(str(write_config(tmp_path)), references(three), "sources")
    single = models.with_single("soup", models.states["site-b"])
    assert single.names == ("soup",)
    assert single.digests == {"soup": models.digests["site-b"]}
    assert (single.architecture, single.preprocessing) == (models.architecture, models.preprocessing)
    assert models.names == tuple(three)
