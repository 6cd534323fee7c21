"""Ctrl-C: a line that says what to do, exit code 130, and nothing lost."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.models.factory import random_state, write_checkpoint

TINY = Path(__file__).parents[1] / "pipeline" / "demo" / "tiny.json"

MANIFEST = """
name: interrupted
output: run
archives: archives
pair: {architecture: %s, generalist: ./generalist.safetensors, expert: ./expert.safetensors}
part_rows: 256
evaluation_sets:
  - {name: cells, source: {kind: synthetic, count: 100000}}
"""


def test_interrupt_says_that_committed_work_is_kept(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MANIFEST % TINY)
    for seed, name in enumerate(("generalist", "expert")):
        write_checkpoint(tmp_path / f"{name}.safetensors", random_state(TINY, seed))
    command = [sys.executable, "-m", "pipeline.cli", "ingest", str(tmp_path / "m.yaml"), "--engine", "local"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as child:
        samples = tmp_path / "archives" / "cells" / "samples"
        deadline = time.monotonic() + 120
        while not list(samples.glob("part-*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err.splitlines()[-1] == "interrupted: what was committed is kept; run the same command again"
    assert "Traceback" not in err
