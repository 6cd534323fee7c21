"""Peak memory of a piece of work: what `pipeline plan` and `pipeline bench` say that a worker needs."""

import time

import numpy as np
import pytest
import torch

from pipeline.stages.peak_memory import PeakMemory


def test_peak_memory_counts_what_is_held_in_between() -> None:
    with PeakMemory(torch.device("cpu")) as peak:
        held = np.ones(64 << 20, dtype=np.uint8)
        time.sleep(0.1)
        del held
    assert 60 << 20 <= peak.bytes <= 200 << 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_on_a_gpu_is_what_the_device_counts() -> None:
    device = torch.device("cuda")
    kept = torch.ones(1 << 20, device=device)
    with PeakMemory(device) as peak:
        torch.ones(8 << 20, device=device)
    assert peak.bytes == 32 << 20
    assert kept.sum() == 1 << 20
