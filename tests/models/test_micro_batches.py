"""Memory that runs out: for real in a process with a limit, and by decree where a test wants to say when."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import OutOfMemoryError, PipelineError
from pipeline.models.micro_batches import MicroBatches, all_at_once, is_out_of_memory

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]

# Undisturbed first, in the same process; then with no more address space than about half a tile needs. Some of it goes
# to what memory holds besides tensors: oneDNN's code for each shape, and free blocks at the end of glibc's heap.
SCORE_WITH_LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
import numpy as np, psutil, torch
from pipeline.models.class_embeddings import ClassHead
from pipeline.models.scorer import Scorer
from pipeline.memory import return_large_blocks
from tests.models.factory import TINY, changed, random_state, write_config, write_pair

TILE = 2048
return_large_blocks()
torch.set_num_threads(1)
folder = Path(sys.argv[1])
path = write_config(folder, changed(TINY, vision_cfg__width=128, vision_cfg__patch_size=7))
pair = write_pair(folder, path, random_state(path, 1), random_state(path, 2))
scorer = Scorer(pair, device=torch.device("cpu"), precision="fp32")
generator = torch.Generator().manual_seed(0)
head = ClassHead(torch.randn(3, 16, generator=generator), 100.0, torch.zeros(3))
pixels = np.random.default_rng(0).integers(0, 256, (TILE + 100, 28, 28, 3), dtype=np.uint8)
lambdas = np.linspace(0, 1, len(pixels)).tolist()
ways = {
    "source": lambda: np.stack(scorer.source_logits(pixels, [head, head], tile=TILE)),
    "merged": lambda: scorer.merged_logits(pixels, (0.3, 0.7), head, tile=TILE),
    "per-sample": lambda: scorer.per_sample_logits(
        pixels, lambdas, [head] * len(pixels), ends=("generalist", "expert"), tile=TILE),
}
way = ways[sys.argv[2]]
undisturbed = way()
whole = scorer.micro_batches.take_smallest()
calls = dict(scorer.forward_calls)
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20), resource.RLIM_INFINITY))
found = way()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps({
    "whole": whole,
    "micro_batch": scorer.micro_batches.take_smallest(),
    "error": float(np.abs(found - undisturbed).max() / np.abs(undisturbed).max()),
    "calls": sum(scorer.forward_calls.values()) - sum(calls.values()),
    "images": sum(scorer.forward_images.values()),
}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space is limited on Linux only")
@pytest.mark.parametrize(("way", "models"), [("source", 2), ("merged", 1), ("per-sample", 2)])
def test_a_tile_that_does_not_fit_into_memory_is_scored_in_smaller_pieces(
    way: str, models: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCORE_WITH_LITTLE_MEMORY, str(tmp_path), way], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["whole"] is None
    assert found["micro_batch"] in {1024, 512, 256, 128, 64}
    assert found["error"] <= 1e-5
    # Two whole tiles would be two calls of each model.
    assert found["calls"] > 2 * models
    assert found["images"] >= 2 * models * 2148


class Room:
    """Room for ``images`` at once; remembers what it was asked for."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.asked: list[tuple[int, int, int]] = []

    def __call__(self, start: int, stop: int, size: int) -> list[int]:
        self.asked.append((start, stop, size))
        if size > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return list(range(start, stop))


@pytest.mark.parametrize("tile", [32, 20, 7])
@pytest.mark.parametrize("room", [1, 3, 8, 31])
def test_every_image_is_scored_once_and_in_order(tile: int, room: int) -> None:
    micro_batches, work = MicroBatches(CPU), Room(room)
    found = micro_batches.run(75, tile, work, "merged")
    assert [image for piece in found for image in piece] == list(range(75))
    fitting = [(start, stop, size) for start, stop, size in work.asked if size <= room]
    # No piece reaches over the edge of a tile, whose images a whole tile would have scored together.
    assert all(start // tile == (stop - 1) // tile for start, stop, _ in fitting)
    assert all(stop - start <= size for start, stop, size in fitting)


def test_a_smaller_micro_batch_stays_for_the_rest_of_the_process() -> None:
    micro_batches = MicroBatches(CPU)
    first, second = Room(10), Room(10)
    micro_batches.run(32, 32, first, "merged")
    assert [size for _, _, size in first.asked] == [32, 16, 8, 8, 8, 8]
    micro_batches.run(16, 16, second, "expert")
    assert [size for _, _, size in second.asked] == [8, 8]


def test_what_fits_in_whole_tiles_is_not_marked_though_memory_ran_out_before() -> None:
    micro_batches = MicroBatches(CPU)
    assert micro_batches.take_smallest() is None
    micro_batches.run(32, 32, Room(10), "merged")
    assert micro_batches.take_smallest() == 8
    micro_batches.run(4, 1, Room(10), "merged")
    assert micro_batches.take_smallest() is None
    micro_batches.run(9, 9, Room(10), "merged")
    assert micro_batches.take_smallest() == 8


def test_an_image_that_does_not_fit_by_itself_is_one_line() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        MicroBatches(CPU).run(5, 4, Room(0), "generalist, expert")
    message = str(caught.value)
    assert isinstance(caught.value, PipelineError)
    assert message.startswith("generalist, expert: not even one image at a time fits into the memory of cpu")
    assert "Tried to allocate 2.00 GiB" in message
    assert "compute.workers" in message
    assert "\n" not in message


def test_any_other_error_is_raised_as_it_is() -> None:
    def fail(start: int, stop: int, size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    micro_batches = MicroBatches(CPU)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        micro_batches.run(8, 4, fail, "merged")
    assert micro_batches.run(4, 4, Room(4), "merged") == [[0, 1, 2, 3]]


def test_an_allocation_that_torch_cannot_make_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    "message",
    [
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run convolution",
    ],
)
def test_a_convolution_that_had_no_room_in_any_way_is_recognised(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


def test_what_cannot_be_halved_is_one_line_too() -> None:
    with pytest.raises(OutOfMemoryError) as caught, all_at_once("merged", "merge", CPU):
        torch.empty(1 << 60, dtype=torch.uint8)
    message = str(caught.value)
    assert message.startswith("merged: the memory of cpu does not suffice to merge (")
    assert "compute.workers" in message
    assert "\n" not in message
    with pytest.raises(RuntimeError, match="mat1 and mat2"), all_at_once("merged", "merge", CPU):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
