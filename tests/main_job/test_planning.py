"""What a plan is computed from: imagined λ, stages that overlap, workers, chunks decoded, memory, measured prices."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.archives.archive import Archive
from pipeline.archives.shards import ChunkCache
from pipeline.drivers.planning.batches import WIDEST_GAP, imagine_lambdas
from pipeline.drivers.planning.counts import Item, MergeCounter
from pipeline.drivers.planning.decoding import WindowReader
from pipeline.drivers.planning.elapsed import Seconds, bottleneck, makespan
from pipeline.manifest import Manifest
from pipeline.merging.segment import Segment
from tests.main_job.factory import study
from tests.main_job.planned import quick, stages
from tests.merging.factory import Tower, random_state


@given(
    known=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40),
    count=st.integers(1, 200),
    seed=st.integers(0, 5),
)
def test_imagined_lambdas_lie_where_known_ones_do(known: list[float], count: int, seed: int) -> None:
    imagined = imagine_lambdas(np.array(known, dtype=np.float32), count, seed=seed)
    assert len(imagined) == count
    ascending = np.sort(known)
    for lam in imagined.astype(np.float64):
        place = np.searchsorted(ascending, lam)
        below = ascending[max(place - 1, 0)]
        above = ascending[min(place, len(ascending) - 1)]
        assert below - 1e-6 <= lam <= above + 1e-6
        assert above - below <= WIDEST_GAP + 1e-6 or np.isclose(lam, [below, above], atol=1e-6).any()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (Seconds(read=1, device=3, write=2), "device"),
        (Seconds(read=4, device=3, write=2), "reading"),
        (Seconds(read=4, device=3, write=5), "writing"),
        (Seconds(), "nothing"),
    ],
)
def test_the_bottleneck_is_what_the_others_wait_for(seconds: Seconds, expected: str) -> None:
    assert bottleneck(seconds) == expected


@given(read=st.floats(0, 10), device=st.floats(0, 10), write=st.floats(0, 10), blocks=st.integers(1, 20))
def test_reading_overlaps_with_the_device(read: float, device: float, write: float, blocks: int) -> None:
    """Block by block: a block is scored once it is read and the one before it is scored."""
    done_reading = done_scoring = 0.0
    for _ in range(blocks):
        done_reading += read / blocks
        done_scoring = max(done_reading, done_scoring) + device / blocks
    assert Seconds(read, device, write, blocks).elapsed == pytest.approx(done_scoring + write)


def test_workers_take_the_next_item_as_soon_as_they_are_free() -> None:
    assert makespan([3, 1, 1, 1, 2], 2) == 5
    assert makespan([3, 1, 1, 1, 2], 1) == 8
    assert makespan([3, 1], 9) == 3
    assert makespan([], 4) == 0


def test_more_workers_than_parts_do_not_help_and_it_is_said(finished: Manifest, tmp_path: Path, pair: Path) -> None:
    manifest = study(tmp_path, pair, Path(finished.archives), compute={"threads": 1})
    planned = quick(manifest, workers=[1, 5, 50])
    times = stages(planned)["precompute"]["left"]["times"]
    assert [times[count]["workers"] for count in ("1", "5", "50")] == [1, 5, 5]
    assert times["50"] == times["5"]
    assert times["5"]["seconds"] < times["1"]["seconds"]
    assert any("50 workers are more than there are parts" in note for note in planned["notes"])
    assert any("cores of their own" in note for note in planned["notes"])


def test_fewer_workers_than_parts_are_not_called_too_many(finished: Manifest, tmp_path: Path, pair: Path) -> None:
    planned = quick(study(tmp_path, pair, Path(finished.archives)), workers=[4])
    assert not stages(planned)["generalist"]["parallel"], "the driver alone copies what evidence holds"
    assert not any("more than there are parts" in note for note in planned["notes"])


@given(
    lambdas=st.lists(st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), max_size=12), max_size=4), ahead=st.booleans()
)
def test_merges_are_counted_as_the_segment_makes_them(lambdas: list[list[float]], ahead: bool) -> None:
    segment = Segment(Tower(), [random_state(1), random_state(2)], ahead=ahead)
    counter = MergeCounter(frozenset(), ahead)
    for part in lambdas:
        before = segment.merges
        for lam, following in zip(part, [*part[1:], None][: len(part)], strict=True):
            segment.at((1 - lam, lam))
            if ahead and following is not None:
                segment.prepare((1 - following, following))
        weights = np.array([(1 - lam, lam) for lam in part]).reshape(-1, 2)
        assert counter.merges(replace(Item.of_images(), weights=weights)) == segment.merges - before


@pytest.mark.parametrize("room_chunks", [0, 2, 5])
def test_images_decoded_are_counted_as_the_reader_decodes_them(archives: Path, room_chunks: int) -> None:
    archive = Archive.open(archives / "cells")
    chunk_rows = archive.pixels.chunk_rows
    room = room_chunks * chunk_rows * archive.geometry.height * archive.geometry.width * 3
    reader, cache = WindowReader(archive, room), ChunkCache(room)
    rows = np.concatenate([archive.samples(part)["row"].to_numpy() for part in range(archive.parts)])
    for block in np.array_split(np.random.default_rng(0).permutation(rows), 6):
        before = cache.decoded
        archive.read(block, cache)
        assert reader.decode(block) == (cache.decoded - before) * chunk_rows


def test_a_worker_keeps_decoded_pixels_only_for_rows_out_of_order(
    finished: Manifest, tmp_path: Path, pair: Path
) -> None:
    held = {
        method: quick(study(tmp_path / method, pair, Path(finished.archives), methods=[method]))["memory"]["pixels"]
        for method in ("t3-batch", "t3-lambda")
    }
    assert held["t3-lambda"] - held["t3-batch"] == 256 * 28 * 28 * 3, "all pixels of the largest window"


def test_what_is_measured_is_the_numeric_kind_of_the_run(
    finished: Manifest, tmp_path: Path, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = 0

    def compile_in_a_second(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        time.sleep(1)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compile_in_a_second))
    torch.compiler.reset()
    manifest = study(tmp_path, pair, Path(finished.archives), methods=["t3-batch"], compute={"compile": True})
    measured = quick(manifest)["calibration"]
    assert compiled
    assert max(measured["sources"], *measured["merged"].values()) < 1, "compiling is no price of a tile"
