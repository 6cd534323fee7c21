"""A stale cache is an error that names what changed; another rule setting is another folder and costs no forward."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.drivers.ingest import ingest
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest, load_manifest
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    CELLS,
    MANIFEST,
    copy_run,
    make_pair,
    modification_times,
    result_files,
    run_infer,
    run_precompute,
    study,
)

Change = Callable[[Path, Path, Manifest], Manifest]


def other_weights(end: str) -> Change:
    """One number in one tensor of one end is another."""

    def change(folder: Path, _: Path, finished: Manifest) -> Manifest:
        changed = make_pair(folder / "pair")
        state = load_file(changed / f"{end}.safetensors")
        state["visual.proj"][0, 0] += 1e-3
        save_file(state, changed / f"{end}.safetensors")
        return copy_run(finished, folder, changed)

    return change


def other_prompts(folder: Path, pair: Path, finished: Manifest) -> Manifest:
    return copy_run(finished, folder, pair, prompts={"templates": ["a photo of a {}!"]})


def other_text_tower(folder: Path, pair: Path, finished: Manifest) -> Manifest:
    return copy_run(finished, folder, pair, prompts={"text_tower": "generalist"})


def other_class_names(folder: Path, pair: Path, finished: Manifest) -> Manifest:
    named = {"name": "cells", "source": CELLS, "class_names": ["red", "green", "blue", "round"]}
    return copy_run(finished, folder, pair, evaluation_sets=[named])


def other_images(folder: Path, pair: Path, finished: Manifest) -> Manifest:
    """The archive was made again; its second source has other images than before."""
    sources = [CELLS[0], {**CELLS[1], "seed": 6}]
    settings: dict[str, Any] = {"evaluation_sets": [{"name": "cells", "source": sources}]}
    manifest = copy_run(finished, folder, pair, archives=folder / "archives", **settings)
    ingest(manifest, LocalEngine(manifest))
    return manifest


@pytest.mark.parametrize("command", ["precompute", "infer"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_weights("expert"), ["expert"]),
        (other_weights("generalist"), ["generalist"]),
        (other_prompts, ["prompts"]),
        (other_text_tower, ["text_tower"]),
        (other_class_names, ["class_names"]),
        (other_images, ["archive_part"]),
    ],
    ids=["expert", "generalist", "prompts", "text_tower", "class_names", "archive_part"],
)
def test_a_stale_cache_is_refused_by_a_line_that_says_what_changed(
    finished: Manifest,
    pair: Path,
    tmp_path: Path,
    command_line: CommandLine,
    change: Change,
    named: list[str],
    command: str,
) -> None:
    manifest = change(tmp_path, pair, finished)
    before = result_files(Path(manifest.output))
    code, _, err = command_line(command, str(tmp_path / MANIFEST), "--engine", "local")
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert re.findall(r"(\w+) changed \(cached", lines[0]) == named
    assert "give another 'output'" in lines[0]
    assert result_files(Path(manifest.output)) == before


def test_the_unchanged_parts_of_a_changed_archive_stay_valid(finished: Manifest, pair: Path, tmp_path: Path) -> None:
    manifest = other_images(tmp_path, pair, finished)
    evidence = Path(manifest.output) / "evidence" / "cells"
    (evidence / "part-00004.parquet").unlink()
    for path in Path(manifest.output).glob("coefficients/t3/cells/samples/part-00004.parquet"):
        path.unlink()
    for path in Path(manifest.output).glob("coefficients/t3/cells/batches/*/part-00002.parquet"):
        path.unlink()
    before = modification_times(Path(manifest.output))
    summary = run_precompute(manifest)
    assert (summary.computed, summary.skipped) == (1, 4)
    after = modification_times(Path(manifest.output))
    assert {name: after[name] for name in before if "rejects" not in name} == {
        name: time for name, time in before.items() if "rejects" not in name
    }


@pytest.mark.parametrize("coefficient", [{"gamma": 0.5}, {"delta": 0.25}, {"tau_expert": 0.2}, {"lambda_max": 0.9}])
def test_another_rule_setting_is_another_folder_without_a_forward(
    finished: Manifest, pair: Path, tmp_path: Path, coefficient: dict[str, float]
) -> None:
    manifest = copy_run(finished, tmp_path, pair, coefficient=coefficient)
    run = Path(manifest.output)
    before = modification_times(run)
    summary = run_precompute(manifest)
    assert (summary.computed, summary.skipped) == (0, 5)
    counts = summary.ledger.as_json()["counts"]
    assert sum(counts["image_forward_calls"].values()) + sum(counts["text_forward_calls"].values()) == 0
    assert counts["images_read"] == 0

    folders = sorted(path.name for path in (run / "coefficients").iterdir() if path.is_dir())
    assert len(folders) == 2
    assert folders[0] == "t3"
    assert re.fullmatch(r"t3@[0-9a-f]{8}", folders[1])
    spelled = json.loads((run / "coefficients" / f"{folders[1]}.json").read_text())
    assert spelled["name"] == "t3"
    assert spelled["settings"].items() >= coefficient.items()
    assert len(list((run / "coefficients" / folders[1]).rglob("samples/part-*.parquet"))) == 5

    inferred = run_infer(manifest, "t3-batch")
    assert inferred.ledger.per_model["image_forward_calls"]["generalist"] == 0
    assert inferred.ledger.totals["samples"] == 490
    methods = sorted(path.name for path in (run / "predictions").glob("t3-batch@*") if path.is_dir())
    assert len(methods) == 2
    for name in methods:
        assert json.loads((run / "predictions" / f"{name}.json").read_text())["name"] == "t3-batch"
    assert {name: time for name, time in modification_times(run).items() if name in before} == before


def test_default_settings_have_plain_folder_names(pair: Path, archives: Path, tmp_path: Path) -> None:
    manifest = study(tmp_path, pair, archives, grouping={"window": {"rows": 65_536}}, methods=["t3", "t3-batch"])
    run_precompute(manifest)
    run_infer(manifest)
    run = Path(manifest.output)
    assert sorted(path.name for path in (run / "coefficients").iterdir()) == ["t3"]
    assert sorted(path.name for path in (run / "coefficients/t3/cells/batches").iterdir()) == ["arrival", "sample"]
    assert sorted(path.name for path in (run / "predictions").iterdir()) == ["t3", "t3-batch"]
    assert sorted(path.name for path in (run / "embeddings").iterdir()) == ["cells"]


def test_groupings_and_tolerances_are_folders_of_their_own(finished: Manifest, pair: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    seen = {path.name for path in (Path(finished.output) / "predictions").iterdir() if path.is_dir()}
    for grouping in ({"batch_size": 16}, {"tolerance": 0.01}, {"tolerance": 0.02}, {"window": {"rows": 128}}):
        settings: dict[str, Any] = {"grouping": grouping, "methods": ["t3-lambda"], "output": str(run)}
        manifest = study(tmp_path, pair, Path(finished.archives), **settings)
        if not run.exists():
            manifest = copy_run(finished, tmp_path, pair, **settings)
        run_infer(manifest)
        now = {path.name for path in (run / "predictions").iterdir() if path.is_dir()}
        assert len(now - seen) == 1
        seen = now


def test_a_checkpoint_saved_again_with_equal_weights_is_not_stale(
    finished: Manifest, pair: Path, tmp_path: Path
) -> None:
    again = make_pair(tmp_path / "pair")
    torch.save(load_file(again / "expert.safetensors"), again / "expert.pt")
    copy_run(finished, tmp_path, again)
    content = (tmp_path / MANIFEST).read_text().replace("expert.safetensors", "expert.pt")
    (tmp_path / MANIFEST).write_text(content)
    manifest = load_manifest(tmp_path / MANIFEST)
    assert manifest.pair.expert == str(again / "expert.pt")
    summary = run_precompute(manifest)
    assert (summary.computed, summary.skipped) == (0, 5)
