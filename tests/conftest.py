"""Fixtures that every room may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Machines that run these tests are noisy: how long one example takes says nothing. CI always draws the same examples.
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real public images; tests that need it are skipped where it is absent."""
    value = os.environ.get("PIPELINE_DATA_ROOT")
    if value is None:
        pytest.skip("PIPELINE_DATA_ROOT is not set: no real images here")
    root = Path(value).resolve()
    if not root.is_dir():
        pytest.skip(f"PIPELINE_DATA_ROOT={value} is not a folder: no real images here")
    return root


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """What a worker has by default; on tiny models a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
