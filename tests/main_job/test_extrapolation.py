"""Extrapolation that leaves what a model can be: one line that names method and tensor, and no file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.main_job.classifiers import CLASSES, CONFIGS, ROLES, cells, write_study
from tests.main_job.conftest import CommandLine


def past_the_expert(folder: Path, entry: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A study of untrained classifiers that differ in one tensor, and of task arithmetic at twice the difference."""
    checkpoints = {role: f"./{role}.safetensors" for role in ROLES}
    config, sets = CONFIGS["resnet"], cells(8, seed=12)
    path = write_study(
        folder,
        config,
        pair={"architecture": "tiny.json", **checkpoints},
        methods=[{"name": "task-arithmetic", "scale": 2}],
        evaluation_sets=sets,
    )
    torch.manual_seed(0)
    state = timm.create_model(config["architecture"], num_classes=CLASSES, **config["model_args"]).state_dict()
    for role, changed in zip(ROLES, (state, state | {entry: change(state[entry])}), strict=True):
        save_file({key: value.contiguous() for key, value in changed.items()}, folder / f"{role}.safetensors")
    return path


@pytest.mark.parametrize(
    ("entry", "factor", "said"),
    [
        ("bn1.running_var", 0.4, "is negative after merging; choose a smaller scale"),
        ("bn1.running_var", 3e38, "is not finite after merging; choose another scale"),
        ("conv1.0.weight", 3e38, "is not finite after merging; choose another scale"),
    ],
    ids=["negative variance", "infinite variance", "infinite weight"],
)
def test_a_merge_that_is_no_model_is_one_line_that_names_method_and_tensor(
    tmp_path: Path, command_line: CommandLine, entry: str, factor: float, said: str
) -> None:
    path = past_the_expert(tmp_path, entry, lambda value: torch.full_like(value, factor))
    for command in ("ingest", "precompute"):
        code, _, err = command_line(command, str(path), "--engine", "local")
        assert code == 0, err
    out = tmp_path / "out" / "merged.safetensors"
    commands = {
        "infer": ("infer", str(path), "--engine", "local"),
        "merge": ("merge", str(path), "--method", "task-arithmetic", "--out", str(out)),
    }
    for name, arguments in commands.items():
        code, printed, err = command_line(*arguments)
        assert (code, printed) == (2, ""), name
        (line,) = err.splitlines()
        assert line.startswith("error: method task-arithmetic@"), name
        assert f"visual.{entry} {said}" in line, name
    assert not out.parent.exists()
    assert not (tmp_path / "run" / "merged").exists()
    assert not (tmp_path / "run" / "predictions").exists()
    # Up to the expert it is a model.
    arguments = ("merge", str(path), "--method", "task-arithmetic", "--set", "scale=1", "--out", str(out))
    assert command_line(*arguments)[0] == 0
