"""A run of all methods: what it holds, costs and records, and that it is the same to the byte however it was made."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.drivers.infer import infer
from pipeline.drivers.precompute import precompute
from pipeline.engines.engine import Job
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest
from pipeline.methods import METHODS
from pipeline.models.checkpoints import write_checkpoint
from pipeline.stages.selection import select_methods
from pipeline.stages.work import Report
from tests.main_job.all_methods import GRID, IMAGES, PARTS, TILES, Everything, read_plan
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    MANIFEST,
    WINDOW_ROWS,
    ShuffledEngine,
    assert_same_files,
    chosen,
    copy_run,
    matrix,
    modification_times,
    read_answers,
    read_evidence,
    result_files,
    run_infer,
    study,
)


def test_one_command_answers_every_row_of_evidence_by_every_method(everything: Everything) -> None:
    rows = read_evidence(everything.manifest)["row"].to_pylist()
    assert len(rows) == IMAGES
    assert {item.method.name for item in everything.selected} == set(METHODS)
    assert everything.inferred[0].computed == len(METHODS) * PARTS
    assert everything.inferred[1].computed == (len(everything.selected) - len(METHODS)) * PARTS
    for item in everything.selected:
        predictions = read_answers(everything.manifest, item.key)
        assert predictions["row"].to_pylist() == rows, item.key
        p_NC = matrix(predictions, "probabilities")
        np.testing.assert_allclose(p_NC.sum(axis=1), 1.0, atol=1e-5, err_msg=item.key)
        assert predictions["prediction"].to_pylist() == p_NC.argmax(axis=1).tolist(), item.key
        named = {"generalist": 0.0, "expert": 1.0}
        if item.method.name in named:
            assert set(predictions["lambda"].to_pylist()) == {named[item.method.name]}


def test_all_methods_share_one_pass_of_the_plain_models(everything: Everything) -> None:
    calls = everything.precomputed.ledger.per_model["image_forward_calls"]
    assert (calls["generalist"], calls["expert"], calls["merged"]) == (TILES, TILES, 0)
    for summary in everything.inferred:
        for counts in summary.ledger.per_model.values():
            assert sum(count for model, count in counts.items() if model not in {"merged", "per-sample"}) == 0
    for item in everything.selected:
        spent = everything.spent(item.key)
        for kind in ("image_forward_calls", "image_forward_images", "text_forward_calls"):
            assert spent[kind]["generalist"] == spent[kind]["expert"] == 0, item.key


def test_plain_models_and_ensembles_cost_nothing(everything: Everything) -> None:
    for item in everything.of("source", "ensemble"):
        spent = everything.spent(item.key)
        assert {name: spent[name] for name in ("merges", "images_read", "batches")} == {
            "merges": 0,
            "images_read": 0,
            "batches": 0,
        }
        assert sum(spent["image_forward_calls"].values()) == sum(spent["text_forward_calls"].values()) == 0


def test_a_static_method_costs_one_merge_and_one_forward_per_tile(everything: Everything) -> None:
    for item in everything.of("static"):
        spent = everything.spent(item.key)
        assert (spent["merges"], spent["merges_skipped"], spent["images_read"]) == (1, 0, IMAGES), item.key
        assert spent["image_forward_calls"]["merged"] == TILES
        assert spent["image_forward_images"]["merged"] == IMAGES
        assert spent["text_forward_calls"]["merged"] == 1


def test_a_batch_costs_a_merge_unless_it_is_skipped_and_its_tiles_forwards(everything: Everything) -> None:
    for item in everything.of("batch"):
        spent, batches = everything.spent(item.key), read_plan(everything.manifest, item)
        assert spent["batches"] == len(batches) == spent["merges"] + spent["merges_skipped"], item.key
        if item.method.grouping == "sample":
            assert spent["merges"] == spent["image_forward_calls"]["merged"] == 0
            assert spent["image_forward_calls"]["per-sample"] == 2 * TILES
            assert spent["image_forward_images"]["per-sample"] == 2 * spent["images_read"] == 2 * IMAGES
            continue
        assert spent["image_forward_calls"]["merged"] == sum(-(-size // 32) for size in batches["size"].to_pylist())
        assert spent["image_forward_images"]["merged"] == spent["images_read"] == IMAGES
        changes = len({lam for lam in batches["lambda"].to_pylist() if lam not in {0.0, 1.0}})
        assert spent["merges"] >= min(changes, len(batches)), item.key


def test_the_oracle_costs_a_forward_per_tile_and_inner_point_of_its_grid(everything: Everything) -> None:
    spent = everything.spent("oracle")
    assert spent["image_forward_calls"]["merged"] == len(GRID) * TILES
    assert spent["image_forward_images"]["merged"] == len(GRID) * IMAGES
    assert spent["merges"] == len(GRID) * PARTS
    assert spent["images_read"] == IMAGES


def test_a_second_command_computes_nothing(everything: Everything) -> None:
    before = modification_times(everything.run)
    summary = run_infer(everything.manifest)
    assert (summary.computed, summary.skipped) == (0, len(everything.selected) * PARTS)
    assert summary.samples == 0
    counts = summary.ledger.as_json()["counts"]
    assert sum(sum(counts[kind].values()) for kind in ("image_forward_calls", "text_forward_calls")) == 0
    assert (counts["merges"], counts["images_read"]) == (0, 0)
    assert modification_times(everything.run) == before
    assert everything.spent("soup")["merges"] == 1


def test_the_record_of_a_run_names_versions_and_spells_out_every_methods_settings(everything: Everything) -> None:
    record = json.loads((everything.run / "run.json").read_text())
    for package in ("torch", "timm", "safetensors", "open_clip_torch"):
        assert record["versions"][package] == metadata.version(package)
    spelled = record["method_settings"]
    assert record["variants"] == [item.key for item in everything.selected]
    assert sorted(spelled) == sorted(record["variants"])
    assert spelled["generalist"] == {}
    assert spelled["soup"] == {"alpha": 0.5}
    assert spelled[chosen(everything.manifest, "soup", alpha=0.4).key] == {"alpha": 0.4}
    assert spelled["mixup"] == {"distribution": "beta", "alpha": 0.5, "seed": 0}
    batch = spelled[chosen(everything.manifest, "t3-batch", order="dirichlet(0.05)").key]
    assert batch["grouping"] == {
        "name": "arrival",
        "batch_size": 32,
        "order": "dirichlet(0.05)",
        "seed": 0,
        "window": {"rows": WINDOW_ROWS, "bytes": 8 << 30},
    }
    assert batch["rule"].items() >= {"name": "t3", "gamma": 1.0, "delta": 0.5, "mapping": "sigmoid"}.items()


def files_of(run: Path, *keys: str) -> dict[str, bytes]:
    """Bytes of the tables and weights of these methods."""
    paths = [path for table in ("predictions", "grid", "merged") for path in (run / table).rglob("*.*")]
    chosen_paths = [path for path in paths if path.is_file() and path.relative_to(run).parts[1] in keys]
    return {str(path.relative_to(run)): path.read_bytes() for path in chosen_paths}


def test_online_equals_precomputed_to_the_byte_for_every_kind_of_weights(
    everything: Everything, pair: Path, archives: Path, tmp_path: Path
) -> None:
    names = ["dawin-batch", "t3-mixture", "entropy-adaptive"]
    online = study(tmp_path, pair, archives, methods=names)
    summary = run_infer(online, online=True)
    calls = summary.ledger.per_model["image_forward_calls"]
    assert calls["generalist"] == calls["expert"] == len(names) * TILES
    keys = [item.key for item in select_methods(online)]
    assert result_files(Path(online.output), "evidence", "coefficients") == {}
    found, expected = files_of(Path(online.output), *keys), files_of(everything.run, *keys)
    assert_same_files(found, expected)
    assert len(expected) == len(names) * PARTS


def test_any_order_of_work_leaves_the_same_files(
    everything: Everything, pair: Path, archives: Path, tmp_path: Path
) -> None:
    manifest = study(tmp_path, pair, archives, methods=["soup", "oracle", "entropy-adaptive", "t3-mixture"])
    engine = ShuffledEngine(manifest, workers=2, seed=5)
    precompute(manifest, engine)
    infer(manifest, engine)
    keys = [item.key for item in select_methods(manifest)]
    found, expected = files_of(Path(manifest.output), *keys), files_of(everything.run, *keys)
    assert_same_files(found, expected)
    assert {name.split("/")[0] for name in expected} == {"predictions", "grid", "merged"}


class Stopped(Exception):  # noqa: N818 - it is no error, it is what a kill looks like from inside
    pass


@dataclass
class StoppingEngine:
    """Runs this many items and is gone."""

    manifest: Manifest
    items: int

    def run(self, job: Job, on_report: Callable[[Report], None]) -> None:
        worker = job.make_worker()
        for item in job.items[: self.items]:
            on_report(worker.run(item))
        raise Stopped

    def numeric_kind(self) -> Mapping[str, str]:
        return LocalEngine(self.manifest).numeric_kind()


def test_a_run_that_ends_in_the_middle_is_resumed_without_a_second_merge_or_forward(
    everything: Everything, finished: Manifest, pair: Path, tmp_path: Path
) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=["ties", "oracle"])
    for items in (3, 4):
        with pytest.raises(Stopped):
            infer(manifest, StoppingEngine(manifest, items))
    committed = modification_times(Path(manifest.output))
    weights = Path(manifest.output) / "merged" / "ties" / "weights.safetensors"
    merged_at = weights.stat().st_mtime_ns
    summary = run_infer(manifest)
    # All of ties' predictions lay there, and two parts of the oracle's grid, which are no predictions yet.
    assert (summary.computed, summary.skipped) == (PARTS, PARTS)
    now = modification_times(Path(manifest.output))
    assert {name: now[name] for name in committed} == committed
    assert weights.stat().st_mtime_ns == merged_at
    assert_same_files(files_of(Path(manifest.output), "ties", "oracle"), files_of(everything.run, "ties", "oracle"))
    record = json.loads((Path(manifest.output) / "run.json").read_text())["ledger"]["infer"]
    for method in ("ties", "oracle"):
        ours, theirs = record[method]["counts"], everything.spent(method)
        assert ours == theirs


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
def test_torn_or_lost_weights_of_a_static_method_are_merged_again_and_counted_once(
    everything: Everything, finished: Manifest, pair: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=["slerp"])
    run_infer(manifest)
    run = Path(manifest.output)
    damage(run / "merged" / "slerp" / "weights.safetensors")
    (run / "predictions" / "slerp" / "cells" / "part-00002.parquet").unlink()
    summary = run_infer(manifest)
    assert (summary.computed, summary.skipped) == (1, PARTS - 1)
    assert_same_files(files_of(run, "slerp"), files_of(everything.run, "slerp"))
    counts = json.loads((run / "run.json").read_text())["ledger"]["infer"]["slerp"]["counts"]
    assert counts == everything.spent("slerp")


def test_weights_merged_from_others_are_refused(
    finished: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=["soup", "slerp"])
    run_infer(manifest)
    merged = Path(manifest.output) / "merged"
    (merged / "slerp" / "weights.safetensors").write_bytes((merged / "soup" / "weights.safetensors").read_bytes())
    code, _, err = command_line("infer", str(tmp_path / MANIFEST), "--engine", "local")
    assert code == 2
    (line,) = err.splitlines()
    assert f"{merged / 'slerp' / 'weights.safetensors'}: method changed since it was merged" in line


def test_the_settings_of_a_static_merge_are_there_after_a_kill_right_behind_its_weights(
    finished: Manifest, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=[{"name": "soup", "alpha": 0.4}])
    (item,) = select_methods(manifest)

    def write_and_die(*arguments: Any) -> None:
        write_checkpoint(*arguments)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.static.write_checkpoint", write_and_die)
        with pytest.raises(Stopped):
            run_infer(manifest)
    weights = Path(manifest.output) / "merged" / item.key / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    assert run_infer(manifest).computed == PARTS
    assert weights.stat().st_mtime_ns == written
    spelled = json.loads((Path(manifest.output) / "merged" / f"{item.key}.json").read_text())
    assert (spelled["name"], spelled["settings"]) == ("soup", {"alpha": 0.4})
    counts = json.loads((Path(manifest.output) / "run.json").read_text())["ledger"]["infer"][item.key]["counts"]
    assert counts["merges"] == 1
