"""What the benchmark counts is held against the paper's cost classes, and its logits against merged state dicts."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import cli
from pipeline.benchmarks.method_costs import Setting, method_costs
from pipeline.benchmarks.random_pair import random_pair
from pipeline.benchmarks.scaling import scaling
from pipeline.benchmarks.ways import Workload
from pipeline.errors import PipelineError
from pipeline.merging.segment import Segment
from tests.models.factory import RESNET10, TINY, TINY_RESNET, write_config

N, SIZE = 12, 4
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def setting(path: Path, **changes: Any) -> Setting:
    given = {"samples": N, "batch_size": SIZE, "classes": 3, "pairs": 3, "device": "cpu", "tolerances": (0.0, 0.5)}
    return Setting(str(path), **(given | changes))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return method_costs(setting(write_config(tmp_path_factory.mktemp("bench"))))


def by_name(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result["rows"]}


def test_every_row_costs_the_forwards_and_merges_of_its_class(result: dict[str, Any]) -> None:
    batches = N // SIZE
    expected = {
        "plain": (N, 0),
        "ensemble": (2 * N, 0),
        "soup": (N, 1),
        "dawin": (2 * N, 0),
        "t3-batch": (N, batches),
        "t3-batch-online": (3 * N, batches),
        "t3-loop": (N, N),
        "t3-loop-online": (3 * N, N),
        "t3": (2 * N, 0),
        "t3-online": (4 * N, 0),
        "t3-lambda@0": (N, N),
        "t3-lambda@0.5": (N, 1),
    }
    assert {name: (row["image_forwards"], row["merges"]) for name, row in by_name(result).items()} == expected
    assert next(iter(by_name(result))) == "plain"


@pytest.mark.parametrize("only", [("t3-batch",), ("t3-batch", "t3-batch-online", "t3"), ("soup",)])
def test_every_turn_pays_for_its_merges(only: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merges: list[int] = []
    forget = Segment.forget

    def noted(segment: Segment[Any]) -> None:
        merges.append(segment.merges)
        forget(segment)

    monkeypatch.setattr(Segment, "forget", noted)
    result = method_costs(setting(write_config(tmp_path), samples=SIZE, only=only))
    rows = [row["merges"] for row in result["rows"]]
    assert rows == [0, *(0 if name == "t3" else 1 for name in only)]
    turns = [merges[start : start + len(rows)] for start in range(0, len(merges), len(rows))]
    assert [turn[0] - turns[0][0] for turn in turns] == [turn * sum(rows) for turn in range(len(turns))]


def test_rows_say_what_programs_expect(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for row in result["rows"]:
        assert row.keys() >= {"name", "ratio", "seconds", "image_forwards", "text_forwards", "merges", "peak_bytes"}
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["seconds"] > 0
        assert row["peak_bytes"] > 0
    rows = by_name(result)
    assert rows["plain"]["ratio"] == 1.0
    assert (rows["t3-batch"]["required"], rows["t3-batch"]["paper"]) == (1.03, 1.017)
    assert "at most 1.03: " in result["text"]


def test_a_row_that_no_other_one_tells_about_is_not_predicted(tmp_path: Path) -> None:
    found = method_costs(setting(write_config(tmp_path), only=("t3-batch", "t3-loop", "t3", "t3-online")))
    predicted = {name: row["predicted_seconds"] for name, row in by_name(found).items()}
    assert predicted["t3"] is None
    assert all(seconds is None or seconds > 0 for seconds in predicted.values())
    assert "dawin" not in found["text"]


def test_text_forwards_do_not_grow_with_batches(result: dict[str, Any], tmp_path: Path) -> None:
    more = method_costs(setting(write_config(tmp_path), samples=3 * N))
    assert by_name(more)["t3-batch"]["text_forwards"] == by_name(result)["t3-batch"]["text_forwards"]
    assert by_name(result)["plain"]["text_forwards"] == 1


def test_bytes_moved_are_pixels_and_both_ends_and_the_result_of_each_merge(result: dict[str, Any]) -> None:
    rows = by_name(result)
    pixels = N * 28 * 28 * 3
    tower = sum(v.numel() * 4 for v in random_pair(write_tiny(result)).model.visual.state_dict().values())
    assert rows["plain"]["bytes_moved"] == pixels
    moved = rows["t3-batch"]["bytes_moved"] - pixels
    # Tensors start at aligned places, so that a few bytes lie between them.
    assert moved == pytest.approx(N // SIZE * 3 * tower, rel=0.2)
    assert rows["t3-batch-online"]["bytes_moved"] - moved == 2 * pixels


def write_tiny(result: dict[str, Any]) -> str:
    return str(result["architecture"])


@pytest.mark.parametrize("config", [TINY, TINY_RESNET, RESNET10], ids=["ViT", "ResNet", "timm"])
def test_exact_and_loop_agree_for_every_family(config: dict[str, Any], tmp_path: Path) -> None:
    found = method_costs(setting(write_config(tmp_path, config), classes=config.get("num_classes", 3)))
    assert found["per_sample"] == "exact"
    assert found["agreement"].keys() == {"t3 and t3-loop", "t3-online and t3-loop-online"}
    assert all(value <= 1e-5 for value in found["agreement"].values())


def test_batches_are_scored_by_their_own_merge(tmp_path: Path) -> None:
    work = Workload.make(
        str(write_config(tmp_path)), samples=N, batch_size=SIZE, classes=3, device=CPU, precision="fp32"
    )
    found = work.ways()["t3-batch"].run()
    for start in range(0, N, SIZE):
        rows = slice(start, start + SIZE)
        lam = float(np.float32(work.lambdas[rows].mean(dtype=np.float64)))
        state = {
            key: torch.lerp(value, work.models.states["expert"][key], lam)
            for key, value in work.models.states["generalist"].items()
            if key.startswith("visual.")
        }
        model = work.models.model
        model.load_state_dict(work.models.states["generalist"] | state)
        mean, std = (
            torch.tensor(v).view(3, 1, 1) for v in (work.models.preprocessing.mean, work.models.preprocessing.std)
        )
        inputs = (torch.from_numpy(work.pixels[rows]).permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.inference_mode():
            expected = work.curve.at(lam).logits(model.encode_image(inputs))
        np.testing.assert_allclose(found[rows], expected.numpy(), rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_tower_with_an_unknown_layer_merges_for_each_image_and_says_so(tmp_path: Path) -> None:
    config = {"architecture": "convnext_atto", "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]}}
    found = method_costs(setting(write_config(tmp_path, config), samples=4, batch_size=2))
    assert found["per_sample"] == "merge loop"
    assert (by_name(found)["t3"]["image_forwards"], by_name(found)["t3"]["merges"]) == (4, 4)
    assert "merges for each" in found["text"]


def test_only_rows_that_are_asked_for_are_measured_beside_the_plain_model(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    found = method_costs(setting(path, only=("t3", "soup")))
    assert [row["name"] for row in found["rows"]] == ["plain", "soup", "t3"]
    assert found["agreement"] == {}
    with pytest.raises(PipelineError, match="--only t4: no such row; the rows are plain, ensemble, "):
        method_costs(setting(path, only=("t4",)))


def test_scaling_changes_one_thing_at_a_time(tmp_path: Path) -> None:
    found = scaling(setting(write_config(tmp_path), tolerances=()), samples=[8], batch_sizes=[2, 16], classes=[5])
    assert [(point["over"], point["value"]) for point in found["points"]] == [
        ("samples", 8),
        ("batch_size", 2),
        ("batch_size", 16),
        ("classes", 5),
    ]
    merges = [by_name(point)["t3-batch"]["merges"] for point in found["points"]]
    assert merges == [2, 6, 1, 3]
    assert by_name(found["points"][2])["plain"]["image_forwards"] == 16
    assert found["prediction_error"] >= 0


def test_a_folder_that_cannot_keep_results_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    config = str(write_config(tmp_path))
    command = ["pipeline", "bench", "--architecture", config, "--folder", str(tmp_path / "file")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr("pipeline.benchmarks.method_costs.method_costs", lambda _: pytest.fail("measured"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code
    assert (
        capsys.readouterr().err
        == f"error: --folder {tmp_path / 'file'}: cannot be written to (File exists); name another\n"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_table_is_made_on_a_gpu(tmp_path: Path) -> None:
    found = method_costs(setting(write_config(tmp_path), device="cuda"))
    assert found["device"] == "cuda"
    assert all(value <= 1e-4 for value in found["agreement"].values())
