"""The bare loop gives the answers that the pipeline commits, so both do the same work."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.archives.synthetic import SyntheticSource
from pipeline.benchmarks.end_to_end import REFERENCES, BareLoops, end_to_end
from pipeline.benchmarks.memory_growth import memory_growth
from pipeline.benchmarks.synthetic_run import BLOCK, RepeatedCells, write_archive, write_manifest, write_pair
from pipeline.drivers.infer import infer
from pipeline.drivers.precompute import precompute
from pipeline.engines.local import LocalEngine
from pipeline.errors import PipelineError
from pipeline.manifest import load_manifest


def test_the_bare_loop_gives_the_answers_that_the_pipeline_commits(tmp_path: Path) -> None:
    write_pair(tmp_path)
    manifest = load_manifest(write_manifest(tmp_path, tmp_path, 300, part_rows=128))
    write_archive(manifest, 300)
    precompute(manifest, LocalEngine(manifest))
    infer(manifest, LocalEngine(manifest))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        answers = np.concatenate([batch.numpy() for batch in BareLoops(manifest).merged()])
    finally:
        torch.set_num_threads(before)
    parts = sorted((Path(manifest.output) / "predictions").rglob("part-*.parquet"))
    committed = pa.concat_tables([pq.read_table(part) for part in parts])
    assert len(committed) == 300
    # Batches of arrival follow the addresses, so the loop's order is that of the rows.
    np.testing.assert_array_equal(committed["prediction"].to_numpy(), answers)


@pytest.mark.slow
def test_every_way_is_compared_with_its_loop_in_throughput(tmp_path: Path) -> None:
    result = end_to_end(640, 1, 1, tmp_path, part_rows=128)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert set(result["images_per_second"]) == {*REFERENCES, *REFERENCES.values()}
    for name, ratio in result["ratios"].items():
        rates = result["images_per_second"]
        assert ratio["ratio"] == pytest.approx(rates[name] / rates[ratio["to"]])
    assert "at least 0.85" in result["text"]


def test_too_few_images_to_leave_the_start_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="--images must be at least 512, 4 parts, got 100"):
        end_to_end(100, 3, 1, tmp_path, part_rows=128)


def test_repeated_cells_are_the_synthetic_ones_over_and_over_under_names_of_their_own() -> None:
    cells = SyntheticSource(2 * BLOCK, 0)
    repeated = [*RepeatedCells(cells).read(BLOCK - 2, BLOCK + 2)]
    drawn = [*cells.read(BLOCK - 2, BLOCK), *cells.read(0, 2)]
    assert [item.index for item in repeated] == [*range(BLOCK - 2, BLOCK + 2)]
    assert len({item.sample_id for item in repeated}) == 4
    for mine, original in zip(repeated, drawn, strict=True):
        np.testing.assert_array_equal(np.asarray(mine.image), np.asarray(original.image))
        assert mine.label == original.label


@pytest.mark.parametrize("sizes", [[1000], [1000, 1000]])
def test_growth_needs_two_sizes(sizes: list[int], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="at least two different sizes"):
        memory_growth(sizes, tmp_path)


@pytest.mark.slow
def test_memory_is_told_by_kind_of_process(tmp_path: Path) -> None:
    result = memory_growth([300, 600], tmp_path)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    peaks = []
    for row in result["rows"]:
        for stage in ("precompute", "infer"):
            assert set(row[stage]["unique_bytes"]) == {"driver", "worker", "Ray"}
        peaks.append(max(max(row[stage]["unique_bytes"].values()) for stage in ("precompute", "infer")))
    # Python, torch and Ray alone take that much in a driver.
    assert all(100 << 20 < peak < 4 << 30 for peak in peaks)
    assert result["growth"] == pytest.approx(peaks[1] / peaks[0] - 1)
