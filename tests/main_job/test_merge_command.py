"""``pipeline merge``: a file that plain open_clip loads, that answers as the run's method does, and says what it is."""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.manifest import Manifest
from pipeline.models.checkpoints import digest_weights
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    MANIFEST,
    PlainClip,
    chosen,
    copy_run,
    matrix,
    numpy_weights,
    read_answers,
    run_infer,
    run_precompute,
    single_precision,
    study,
    tiny_config,
)

SOUP = {"name": "soup", "alpha": 0.4}
SOUP_55 = {"name": "soup", "alpha": 0.55}
TIES = {"name": "ties", "density": 0.3}

Export = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def merged_run(tmp_path_factory: pytest.TempPathFactory, finished: Manifest, pair: Path) -> Manifest:
    """A run of the static methods that the tests export. Not to be written to."""
    manifest = copy_run(finished, tmp_path_factory.mktemp("merged"), pair, methods=[SOUP, SOUP_55, TIES])
    run_infer(manifest)
    return manifest


@pytest.fixture
def export(merged_run: Manifest, tmp_path: Path, command_line: CommandLine) -> Export:
    """Run ``pipeline merge`` on a manifest, by default the run's: the file, and its card as printed."""

    def run(*arguments: str, manifest: Manifest = merged_run) -> tuple[Path, dict[str, Any]]:
        out = tmp_path / "exports" / "merged.safetensors"
        path = Path(manifest.output).parent / MANIFEST
        code, printed, err = command_line("merge", str(path), *arguments, "--out", str(out), "--json")
        assert code == 0, err
        assert err == ""
        answer = json.loads(printed)
        assert answer["output"] == str(out)
        return out, answer["card"]

    return run


def card_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        card: dict[str, Any] = json.loads(file.metadata()["pipeline.card"])
    return card


@pytest.mark.parametrize(
    ("arguments", "entry", "settings", "lam"),
    [
        (["--method", "soup", "--set", "alpha=0.4"], SOUP, {"alpha": 0.4}, 0.4),
        (["--method", "ties"], TIES, {"density": 0.3, "scale": 1.0}, None),
        (["--lambda", "0.55"], SOUP_55, {"alpha": 0.55}, 0.55),
        (["--method", "ties", "--set", "density=0.3"], TIES, {"density": 0.3, "scale": 1.0}, None),
    ],
    ids=["soup", "ties of the manifest", "lambda", "ties"],
)
def test_the_file_answers_in_open_clip_as_the_method_does_in_a_run_and_its_card_says_how_it_was_made(
    merged_run: Manifest,
    pair: Path,
    export: Export,
    plain: PlainClip,
    arguments: list[str],
    entry: dict[str, Any],
    settings: dict[str, Any],
    lam: float | None,
) -> None:
    out, printed = export(*arguments)
    state = load_file(out)
    key = chosen(merged_run, entry["name"], **{name: value for name, value in entry.items() if name != "name"}).key
    predictions = read_answers(merged_run, key)
    p_NC = plain.probabilities(state, predictions["row"].to_pylist())
    np.testing.assert_allclose(matrix(predictions, "probabilities"), p_NC, rtol=0, atol=1e-5)

    card = card_of(out)
    assert card == printed
    assert card["merge"] == {
        "method": entry["name"],
        "settings": settings,
        "lambda": lam,
        "text_tower": "merged",
        "sources": {end: digest_weights(load_file(pair / f"{end}.safetensors")) for end in ("generalist", "expert")},
    }
    assert card["digest"] == digest_weights(state)
    assert card["architecture"]["vision_cfg"]["width"] == tiny_config()["vision_cfg"]["width"]


def test_open_clips_own_loader_takes_the_file(export: Export, pair: Path, tmp_path: Path) -> None:
    out, _ = export("--lambda", "0.55")
    model = open_clip.CLIP(**tiny_config())
    open_clip.load_checkpoint(model, str(out), strict=True)
    generalist, expert = (numpy_weights(pair / f"{end}.safetensors") for end in ("generalist", "expert"))
    expected = single_precision({key: 0.45 * value + 0.55 * expert[key] for key, value in generalist.items()})
    loaded = model.state_dict()
    assert set(loaded) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(loaded[key].numpy(), value.numpy(), rtol=1e-6, atol=1e-6, err_msg=key)


def test_with_the_generalists_text_tower_the_file_has_it(
    pair: Path, archives: Path, tmp_path: Path, export: Export
) -> None:
    manifest = study(tmp_path / "study", pair, archives, prompts={"text_tower": "generalist"})
    out, card = export("--method", "soup", "--set", "alpha=0.25", manifest=manifest)
    assert card["merge"]["text_tower"] == "generalist"
    merged, generalist, expert = (
        numpy_weights(path) for path in (out, pair / "generalist.safetensors", pair / "expert.safetensors")
    )
    assert sorted(merged) == sorted(generalist)
    for key, value in generalist.items():
        expected = 0.75 * value + 0.25 * expert[key] if key.startswith("visual.") else value
        np.testing.assert_allclose(merged[key], expected, rtol=1e-6, atol=1e-6, err_msg=key)
    assert not np.array_equal(merged["visual.proj"], generalist["visual.proj"])
    np.testing.assert_array_equal(merged["logit_scale"], generalist["logit_scale"])


def test_equal_merges_give_equal_bytes(export: Export) -> None:
    first = export("--method", "soup", "--set", "alpha=0.4")[0].read_bytes()
    assert export("--method", "soup", "--set", "alpha=0.40")[0].read_bytes() == first
    assert export("--method", "soup", "--set", "alpha=0.41")[0].read_bytes() != first


def test_the_file_serves_as_the_expert_of_another_pair(
    merged_run: Manifest, pair: Path, archives: Path, tmp_path: Path, export: Export
) -> None:
    out, card = export("--method", "soup", "--set", "alpha=0.4")
    merged_pair = tmp_path / "merged pair"
    merged_pair.mkdir()
    for name in ("tiny.json", "generalist.safetensors"):
        (merged_pair / name).write_bytes((pair / name).read_bytes())
    out.rename(merged_pair / "expert.safetensors")
    other = study(tmp_path / "other", merged_pair, archives, methods=["expert"])
    run_precompute(other)
    run_infer(other)
    soup = read_answers(merged_run, chosen(merged_run, "soup", alpha=0.4).key)
    expert = read_answers(other, "expert")
    assert expert["row"].equals(soup["row"])
    np.testing.assert_allclose(matrix(expert, "probabilities"), matrix(soup, "probabilities"), rtol=0, atol=1e-6)
    record = json.loads((Path(other.output) / "run.json").read_text())
    assert record["fingerprints"]["expert"] == card["digest"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "t3-batch"], "--method: t3-batch gives no single merged model"),
        (["--method", "oracle"], "--method: oracle gives no single merged model"),
        (["--method", "expert"], "--method: expert gives no single merged model"),
        (["--method", "ensemble"], "--method: ensemble gives no single merged model"),
        (["--method", "own:rule-batch"], "--method: own:rule-batch gives no single merged model"),
        (["--method", "sloup"], "--method: unknown method 'sloup'; did you mean soup?"),
        (["--method", "soup", "--set", "alpha=2"], "alpha must be <= 1, got 2"),
        (["--method", "soup", "--set", "alpha=nan"], "alpha must be a number, got 'nan'"),
        (["--method", "soup", "--set", "alpha"], "--set: must be NAME=VALUE, got 'alpha'"),
        (["--method", "soup", "--set", "aplha=0.4"], "soup has no setting 'aplha'; did you mean alpha?"),
        (["--method", "mixup", "--set", "distribution=normal"], "distribution must be beta or uniform, got 'normal'"),
        (["--method", "soup"], "--method: the manifest has soup at several settings; say with --set which"),
        (["--method", "soup", "--set", "alpha=0.1", "--set", "alpha=0.2"], "--set: alpha is given twice"),
        (["--lambda", "-0.1"], "--lambda: must lie in [0, 1], got -0.1"),
        (["--lambda", "0.5", "--set", "alpha=0.5"], "--set: goes with --method, not with --lambda"),
        (["--method", "soup", "--lambda", "0.5"], "give either --method or --lambda"),
        ([], "give either --method or --lambda"),
    ],
    ids=lambda value: " ".join(value) or "neither" if isinstance(value, list) else "",
)
def test_what_cannot_be_exported_is_one_line(
    merged_run: Manifest, tmp_path: Path, command_line: CommandLine, arguments: list[str], said: str
) -> None:
    path, out = Path(merged_run.output).parent / MANIFEST, tmp_path / "merged.safetensors"
    code, printed, err = command_line("merge", str(path), *arguments, "--out", str(out))
    assert (code, printed) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not out.exists()


@pytest.mark.parametrize("name", ["merged.pt", "merged", "merged.safetensors.tmp"])
def test_a_file_that_is_no_safetensors_is_refused_by_its_name(
    merged_run: Manifest, tmp_path: Path, command_line: CommandLine, name: str
) -> None:
    path, out = Path(merged_run.output).parent / MANIFEST, tmp_path / name
    code, _, err = command_line("merge", str(path), "--method", "soup", "--out", str(out))
    assert code == 2
    assert err.splitlines() == [f"error: --out: must end in .safetensors, got {out}"]
    assert not out.exists()


# What stands where the file should go.


@pytest.fixture
def own_pair(merged_run: Manifest, pair: Path, tmp_path: Path) -> Path:
    """A manifest whose checkpoints a test may put at risk."""
    copied = tmp_path / "pair"
    shutil.copytree(pair, copied)
    manifest = study(tmp_path / "study", copied, Path(merged_run.archives), methods=["soup"])
    return Path(manifest.output).parent / MANIFEST


def link_to_the_expert(folder: Path) -> Path:
    (folder / "link.safetensors").symlink_to(folder / "pair" / "expert.safetensors")
    return folder / "link.safetensors"


def without_a_card(folder: Path) -> Path:
    save_file({"weight": torch.zeros(2)}, folder / "other.safetensors")
    return folder / "other.safetensors"


def with_a_card_of_a_training(folder: Path) -> Path:
    card = {"pipeline.card": json.dumps({"training": {"sets": []}})}
    save_file({"weight": torch.zeros(2)}, folder / "trained.safetensors", metadata=card)
    return folder / "trained.safetensors"


def no_safetensors(folder: Path) -> Path:
    (folder / "notes.safetensors").write_text("notes of a week")
    return folder / "notes.safetensors"


def a_folder(folder: Path) -> Path:
    (folder / "folder.safetensors").mkdir()
    return folder / "folder.safetensors"


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("a regular file")
    return folder / "file" / "merged.safetensors"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (lambda folder: folder / "pair" / "expert.safetensors", "is a checkpoint of this manifest; give another file"),
        (
            lambda folder: folder / "study" / ".." / "pair" / "generalist.safetensors",
            "is a checkpoint of this manifest; give another file",
        ),
        (link_to_the_expert, "is a checkpoint of this manifest; give another file"),
        (without_a_card, "is there already, and no earlier export; give another file"),
        (with_a_card_of_a_training, "is there already, and no earlier export; give another file"),
        (no_safetensors, "is not a whole safetensors file"),
        (a_folder, "is there already, and no earlier export; give another file"),
        (below_a_file, "cannot be written"),
    ],
    ids=["expert", "generalist", "link", "no card", "training", "text", "folder", "below a file"],
)
def test_nothing_but_an_earlier_export_is_overwritten(
    own_pair: Path, tmp_path: Path, command_line: CommandLine, place: Callable[[Path], Path], said: str
) -> None:
    out = place(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, printed, err = command_line("merge", str(own_pair), "--method", "soup", "--out", str(out))
    assert (code, printed) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert str(out) in line
    assert said in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_earlier_export_is_overwritten(own_pair: Path, tmp_path: Path, command_line: CommandLine) -> None:
    out = tmp_path / "merged.safetensors"
    for alpha in ("0.25", "0.75"):
        settings = ("--method", "soup", "--set", f"alpha={alpha}")
        code, _, err = command_line("merge", str(own_pair), *settings, "--out", str(out))
        assert code == 0, err
        assert card_of(out)["merge"]["lambda"] == float(alpha)


def test_a_setting_cannot_name_another_method(own_pair: Path, tmp_path: Path, command_line: CommandLine) -> None:
    out = tmp_path / "merged.safetensors"
    code, printed, err = command_line(
        "merge", str(own_pair), "--method", "soup", "--set", "name=ties", "--out", str(out)
    )
    assert (code, printed) == (2, "")
    assert err.splitlines() == ["error: --method: soup has no setting 'name'; known: alpha"]
    assert not out.exists()


@pytest.fixture
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The process's umask while a test runs."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002], ids=oct, indirect=True)
def test_an_export_is_as_readable_as_any_new_file(
    own_pair: Path, tmp_path: Path, command_line: CommandLine, mask: int
) -> None:
    out = tmp_path / "merged.safetensors"
    code, _, err = command_line("merge", str(own_pair), "--method", "soup", "--out", str(out))
    assert code == 0, err
    assert mode_of(out) == 0o666 & ~mask


@pytest.mark.parametrize("mask", [0o027], ids=oct, indirect=True)
def test_a_runs_weights_are_as_readable_as_the_files_beside_them(
    finished: Manifest, pair: Path, tmp_path: Path, mask: int
) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=["soup"])
    run_infer(manifest)
    files = [path for path in (Path(manifest.output) / "merged").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"weights.safetensors", "merge.json", "part-00000.parquet"}
    assert {mode_of(path) for path in files} == {0o666 & ~mask}
