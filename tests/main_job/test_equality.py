"""Equal work gives equal bytes, and the answers are those of a plain merge loop written without this project."""

import json
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax

from pipeline.archives.synthetic import SyntheticSource
from pipeline.drivers.infer import infer
from pipeline.drivers.opening import open_run
from pipeline.drivers.precompute import precompute
from pipeline.engines.local import LocalEngine
from pipeline.errors import NumericKindError
from pipeline.manifest import Manifest
from pipeline.stages.precompute import MakePrecomputeWorker
from pipeline.store.run_directory import RunDirectory
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    CELLS,
    MANIFEST,
    MERGING,
    TEMPLATES,
    WINDOW_ROWS,
    ShuffledEngine,
    assert_same_files,
    copy_run,
    environment,
    matrix,
    predictions_folder,
    read_predictions,
    read_samples,
    result_files,
    run_both,
    run_cli,
    run_infer,
    run_precompute,
    study,
    tiny_config,
)

Rows = list[int]
NEAR_TIE = 1e-3


class PlainMergeLoop:
    """Load two state dicts, interpolate each tensor, run open_clip on open_clip's own preprocessing."""

    def __init__(self, pair: Path, *, merged_text: bool = True) -> None:
        self._generalist = load_file(pair / "generalist.safetensors")
        self._expert = load_file(pair / "expert.safetensors")
        self._merged_text = merged_text
        self._model = open_clip.CLIP(**tiny_config()).eval()
        self._transform = open_clip.image_transform(28, is_train=False)
        sources = [SyntheticSource(spec["count"], spec["seed"], site=spec["site"]) for spec in CELLS]
        first_rows = [0, 512]
        self.images = {
            first + item.index: self._transform(item.image)
            for first, source in zip(first_rows, sources, strict=True)
            for item in source.read(0, len(source))
        }
        tokenizer = open_clip.SimpleTokenizer(context_length=tiny_config()["text_cfg"]["context_length"])
        self._names = sources[0].class_names
        self._tokens = [tokenizer([template.replace("{}", name) for template in TEMPLATES]) for name in self._names]

    @torch.inference_mode()
    def probabilities(self, rows: Rows, lam: float) -> np.ndarray:
        torch.set_num_threads(1)
        state = {}
        for key, ours in self._generalist.items():
            follows = key.startswith("visual.") or self._merged_text
            state[key] = (1 - lam) * ours + lam * self._expert[key] if follows else ours
        self._model.load_state_dict(state)
        features = self._model.encode_image(torch.stack([self.images[row] for row in rows]))
        classes = []
        for tokens in self._tokens:
            prompts = self._model.encode_text(tokens)
            mean = (prompts / prompts.norm(dim=-1, keepdim=True)).mean(dim=0)
            classes.append(mean / mean.norm())
        features = features / features.norm(dim=-1, keepdim=True)
        logits = self._model.logit_scale.exp() * features @ torch.stack(classes).T
        return softmax(logits.double().numpy(), axis=1)


@pytest.fixture(scope="module")
def merge_loop(pair: Path) -> PlainMergeLoop:
    return PlainMergeLoop(pair)


def groups_of(method: str, coefficient: dict[int, float], settings: dict[str, Any]) -> list[tuple[Rows, float]]:
    """Batches of rows and their λ, grouped as DESIGN section 6 says, without the project's code."""
    groups: list[tuple[Rows, float]] = []
    size = settings["batch_size"]
    for segment in ([row for row in coefficient if row < 512], [row for row in coefficient if row >= 512]):
        for _, window in groupby(segment, key=lambda row: row // settings["window"]):
            rows = list(window)
            if method == "t3-batch":
                first = rows[0] - rows[0] % settings["window"]
                key = partial(_batch_of, first=first, size=size)
                batches = [list(batch) for _, batch in groupby(rows, key=key)]
            else:
                rows.sort(key=lambda row: (coefficient[row], row))
                step = 1 if method == "t3" else size
                batches = [rows[start : start + step] for start in range(0, len(rows), step)]
            groups += [(batch, float(np.mean([coefficient[row] for row in batch]))) for batch in batches]
    return groups


def _batch_of(row: int, *, first: int, size: int) -> int:
    return (row - first) // size


def compare(
    manifest: Manifest, method: str, loop: PlainMergeLoop, batches: list[tuple[Rows, float]], atol: float
) -> None:
    predictions = read_predictions(manifest, method)
    ours = dict(zip(predictions["row"].to_pylist(), matrix(predictions, "probabilities"), strict=True))
    chosen = dict(zip(predictions["row"].to_pylist(), predictions["prediction"].to_pylist(), strict=True))
    lam_applied = dict(zip(predictions["row"].to_pylist(), predictions["lambda"].to_pylist(), strict=True))
    assert predictions["class_name"].to_pylist() == [_cells()[index] for index in predictions["prediction"].to_pylist()]
    compared = 0
    for rows, lam in batches:
        expected = loop.probabilities(rows, lam)
        np.testing.assert_allclose([ours[row] for row in rows], expected, rtol=0, atol=atol)
        for row, p_C in zip(rows, expected, strict=True):
            assert lam_applied[row] == pytest.approx(lam, abs=1e-6)
            second, first = np.sort(p_C)[-2:]
            assert chosen[row] == p_C.argmax() or first - second < NEAR_TIE
            compared += 1
    assert compared >= 32


def every[T](items: list[T], count: int) -> list[T]:
    """About ``count`` of the items, evenly spread."""
    return items[:: max(1, len(items) // count)]


def _cells() -> tuple[str, ...]:
    return SyntheticSource(1, 0).class_names


def _coefficients(manifest: Manifest) -> dict[int, float]:
    samples = read_samples(manifest)
    return dict(zip(samples["row"].to_pylist(), samples["lambda"].to_pylist(), strict=True))


DEFAULT = {"batch_size": 32, "window": WINDOW_ROWS}


@pytest.mark.parametrize("method", MERGING)
def test_merging_equals_a_plain_merge_loop(finished: Manifest, merge_loop: PlainMergeLoop, method: str) -> None:
    batches = groups_of(method, _coefficients(finished), DEFAULT)
    compare(finished, method, merge_loop, every(batches, 40 if method == "t3" else 16), atol=1e-4)


def test_exact_embeddings_equal_a_plain_merge_loop(
    finished: Manifest, pair: Path, tmp_path: Path, merge_loop: PlainMergeLoop
) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=MERGING, prompts=_exact())
    run_infer(manifest)
    for method in MERGING:
        batches = groups_of(method, _coefficients(manifest), DEFAULT)
        compare(manifest, method, merge_loop, every(batches, 40 if method == "t3" else 16), atol=1e-5)


def _exact() -> dict[str, Any]:
    return {"embeddings": "exact"}


def test_the_plain_models_equal_both_ends_of_a_plain_merge_loop(finished: Manifest, merge_loop: PlainMergeLoop) -> None:
    rows = sorted(merge_loop.images)
    batches = [rows[start : start + 32] for start in range(0, len(rows), 32)]
    compare(finished, "generalist", merge_loop, [(batch, 0.0) for batch in batches], atol=1e-5)
    compare(finished, "expert", merge_loop, [(batch, 1.0) for batch in batches], atol=1e-5)


def test_the_generalists_text_tower_serves_every_coefficient_when_asked(
    pair: Path, archives: Path, tmp_path: Path
) -> None:
    manifest = study(tmp_path, pair, archives, methods=["expert", "t3-lambda"], prompts={"text_tower": "generalist"})
    run_both(manifest)
    loop = PlainMergeLoop(pair, merged_text=False)
    compare(manifest, "t3-lambda", loop, groups_of("t3-lambda", _coefficients(manifest), DEFAULT), atol=1e-5)
    compare(manifest, "expert", loop, [(sorted(loop.images), 1.0)], atol=1e-4)


@pytest.mark.parametrize(
    ("batch_size", "tile", "window"),
    [(20, 32, 128), (300, 64, 256), (8, 5, 512)],
)
def test_any_batch_tile_and_window_give_the_merge_loops_answers_cached_or_online(
    pair: Path, archives: Path, tmp_path: Path, merge_loop: PlainMergeLoop, batch_size: int, tile: int, window: int
) -> None:
    settings = {
        "methods": ["t3-batch", "t3-lambda"],
        "grouping": {"batch_size": batch_size, "window": {"rows": window}},
        "compute": {"tile": tile, "read_bytes": 1 << 16},
    }
    cached = run_both(study(tmp_path / "cached", pair, archives, **settings))
    online = study(tmp_path / "online", pair, archives, **settings)
    run_infer(online, online=True)
    assert_same_files(*(result_files(Path(m.output), "predictions") for m in (online, cached)))
    for method in ("t3-batch", "t3-lambda"):
        batches = groups_of(method, _coefficients(cached), {"batch_size": batch_size, "window": window})
        compare(cached, method, merge_loop, every(batches, 16), atol=1e-4)


@pytest.mark.parametrize("method", MERGING)
def test_online_equals_precomputed_to_the_byte(
    finished: Manifest, pair: Path, archives: Path, tmp_path: Path, method: str
) -> None:
    online = study(tmp_path, pair, archives)
    run_infer(online, method, online=True)
    assert result_files(Path(online.output), "evidence", "coefficients") == {}
    expected = {path.name: path.read_bytes() for path in predictions_folder(finished, method).glob("part-*.parquet")}
    assert len(expected) == 5
    found = {path.name: path.read_bytes() for path in predictions_folder(online, method).glob("part-*.parquet")}
    assert_same_files(found, expected)


@pytest.mark.parametrize("tolerance", [0.0, 0.01])
def test_online_equals_precomputed_within_a_tolerance(
    finished: Manifest, pair: Path, archives: Path, tmp_path: Path, merge_loop: PlainMergeLoop, tolerance: float
) -> None:
    settings = {
        "methods": ["t3-lambda"],
        "grouping": {"tolerance": tolerance, "window": {"rows": WINDOW_ROWS}},
    }
    cached = copy_run(finished, tmp_path / "cached", pair, **settings)
    run_infer(cached)
    online = study(tmp_path / "online", pair, archives, **settings)
    run_infer(online, online=True)
    folders = [predictions_folder(m, "t3-lambda") for m in (online, cached)]
    found, expected = ({p.name: p.read_bytes() for p in folder.glob("part-*")} for folder in folders)
    assert_same_files(found, expected)
    predictions = read_predictions(cached, "t3-lambda")
    applied = dict(zip(predictions["row"].to_pylist(), predictions["lambda"].to_pylist(), strict=True))
    coefficient = _coefficients(cached)
    assert max(abs(applied[row] - coefficient[row]) for row in applied) <= tolerance
    batches = [([row], lam) for row, lam in applied.items()]
    compare(cached, "t3-lambda", merge_loop, every(batches, 40), atol=1e-4)


@pytest.mark.parametrize(("workers", "seed"), [(1, 0), (3, 2)])
def test_any_order_and_any_number_of_workers_leave_the_same_files(
    finished: Manifest, pair: Path, archives: Path, tmp_path: Path, workers: int, seed: int
) -> None:
    manifest = study(tmp_path, pair, archives)
    engine = ShuffledEngine(manifest, workers, seed)
    precompute(manifest, engine)
    infer(manifest, engine)
    assert_same_files(result_files(Path(manifest.output)), result_files(Path(finished.output)))


def test_sets_beside_it_do_not_change_a_sets_files(
    finished: Manifest, pair: Path, archives: Path, tmp_path: Path
) -> None:
    small = study(tmp_path / "small", pair, archives, methods=["t3"])
    run_both(small)
    files = result_files(Path(finished.output))
    for name, content in result_files(Path(small.output)).items():
        assert files[name] == content


def test_curve_and_exact_embeddings_are_methods_of_their_own_in_one_run(
    finished: Manifest, pair: Path, tmp_path: Path
) -> None:
    manifest = copy_run(finished, tmp_path, pair, methods=["t3-batch"], prompts=_exact())
    before = result_files(Path(manifest.output))
    summary = run_infer(manifest)
    after = result_files(Path(manifest.output))
    assert {name: after[name] for name in before} == before
    curve, exact = (read_predictions(m, "t3-batch") for m in (finished, manifest))
    assert predictions_folder(finished, "t3-batch").parent != predictions_folder(manifest, "t3-batch").parent
    np.testing.assert_allclose(matrix(curve, "probabilities"), matrix(exact, "probabilities"), rtol=0, atol=1e-4)
    # Each λ that is no end pays a text forward for its own head.
    assert summary.ledger.per_model["text_forward_calls"]["merged"] >= summary.ledger.totals["merges"]


def test_a_run_in_bfloat16_is_a_run_of_its_own(finished: Manifest, pair: Path, archives: Path, tmp_path: Path) -> None:
    manifest = run_both(study(tmp_path / "half", pair, archives, "bf16", methods=["generalist", "t3-batch"]))
    online = study(tmp_path / "online", pair, archives, "bf16", methods=["generalist", "t3-batch"])
    run_infer(online, "t3-batch", online=True)
    folders = [predictions_folder(m, "t3-batch") for m in (online, manifest)]
    assert_same_files(*({p.name: p.read_bytes() for p in folder.glob("part-*")} for folder in folders))
    full, half = (matrix(read_predictions(m, "generalist"), "probabilities") for m in (finished, manifest))
    assert not np.array_equal(full, half)
    assert (full.argmax(axis=1) == half.argmax(axis=1)).mean() > 0.9
    refused = copy_run(finished, tmp_path / "refused", pair, "bf16")
    with pytest.raises(NumericKindError, match="precision was fp32 and is now bf16"):
        run_precompute(refused)


@pytest.mark.parametrize(("setting", "value"), [("threads", 2), ("tile", 16)])
def test_a_run_refuses_another_numeric_kind_by_name(
    finished: Manifest, pair: Path, tmp_path: Path, command_line: CommandLine, setting: str, value: int
) -> None:
    manifest = copy_run(finished, tmp_path, pair, compute={setting: value})
    before = result_files(Path(manifest.output))
    for stage in ("precompute", "infer"):
        code, _, err = command_line(stage, str(tmp_path / MANIFEST), "--engine", "local")
        assert code == 2
        assert f"{setting} was {getattr(finished.compute, setting)} and is now {value}" in err
        assert len(err.splitlines()) == 1
    assert_same_files(result_files(Path(manifest.output)), before)
    torch.set_num_threads(1)


def test_a_worker_refuses_a_run_of_another_numeric_kind_by_name(pair: Path, archives: Path, tmp_path: Path) -> None:
    manifest = study(tmp_path, pair, archives)
    context, _ = open_run(manifest, LocalEngine(manifest))
    foreign = replace(context, kind={**context.kind, "threads": "7"})
    with pytest.raises(NumericKindError, match=r"threads is 1 and the run's is 7; set compute\.threads to 7"):
        MakePrecomputeWorker(foreign)()


def test_a_process_with_another_instruction_set_is_refused_by_name(
    finished: Manifest, pair: Path, tmp_path: Path
) -> None:
    recorded = RunDirectory(Path(finished.output)).read_record()["numeric_kind"]["instruction_set"]
    if recorded.endswith("DEFAULT"):
        pytest.skip("torch runs here without vector instructions: there is no other set to tell apart")
    copy_run(finished, tmp_path, pair)
    arguments = ("infer", str(tmp_path / MANIFEST), "--engine", "local")
    code, _, err = run_cli(*arguments, ATEN_CPU_CAPABILITY="default")
    assert code == 2
    assert f"instruction_set was {recorded} and is now" in err
    assert "Traceback" not in err
    assert environment().get("ATEN_CPU_CAPABILITY") is None


def test_the_record_says_what_the_run_was_made_with(finished: Manifest) -> None:
    record = json.loads((Path(finished.output) / "run.json").read_text())
    assert record["state"] == "inferred"
    assert record["numeric_kind"]["threads"] == "1"
    assert record["numeric_kind"]["tile"] == "32"
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert set(record["fingerprints"]) == {"generalist", "expert", "architecture", "preprocessing"}
    assert record["class_names"] == {"cells": list(_cells())}
    assert set(record["ledger"]) == {"precompute", "infer"}
