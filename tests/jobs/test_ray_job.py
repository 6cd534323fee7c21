"""jobs/ray-job.sh against a real Ray head with token authentication, in a network and process namespace of its own."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.demo import run as demo
from pipeline.drivers.infer import infer
from pipeline.drivers.ingest import ingest
from pipeline.drivers.precompute import precompute
from pipeline.engines.engine import choose_engine
from pipeline.manifest import load_manifest
from pipeline.models.architectures import load_architecture

SCRIPT = Path(__file__).parents[2] / "jobs" / "ray-job.sh"
METHODS = ("generalist", "expert", "t3-batch", "t3-lambda")
ROWS, PART_ROWS = 300, 128
MANIFEST = f"""\
name: tiny
output: run
archives: archives
pair: {{architecture: tiny.json, generalist: ./generalist.safetensors, expert: ./expert.safetensors}}
methods: [{", ".join(METHODS)}]
part_rows: {PART_ROWS}
compute: {{device: cpu, workers: 1}}
evaluation_sets:
  - {{name: cells, source: {{kind: synthetic, count: {ROWS}, seed: 1}}}}
"""
# Process 1 of the namespace: when it ends, or the test is killed, so does all that it started.
HEAD_AND_SUBMISSIONS = """
set -u
ip link set lo up
ray start --head --port=6379 --num-cpus=2 --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 \\
  --dashboard-port=8265 --disable-usage-stats --temp-dir="$RAY_FOLDER" >head.out 2>&1 || { cat head.out >&2; exit 1; }
for _ in $(seq 120); do (: </dev/tcp/127.0.0.1/8265) 2>/dev/null && break; sleep 0.5; done
submit() {
  name="$1"; shift
  timeout 400 "$SCRIPT" "$@" >"$name.out" 2>"$name.err"
  echo "$?" >"$name.code"
}
RAY_AUTH_TOKEN=$WRONG_TOKEN submit wrong-token tiny.yaml --address http://127.0.0.1:8265
submit mistake mistake.yaml --address http://127.0.0.1:8265
RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 submit whole-run tiny.yaml -- --workers 2
"""


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Submissions:
    folder: Path

    def __getitem__(self, name: str) -> Ended:
        code, out, err = ((self.folder / f"{name}.{kind}").read_text() for kind in ("code", "out", "err"))
        return Ended(int(code), out, err)


@pytest.fixture(scope="module")
def submissions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submissions]:
    """Outcomes of three submissions to one head, whose archive was made beforehand."""
    isolated = isolation()
    folder = tmp_path_factory.mktemp("ray-job")
    prepare(folder)
    # Ray's sockets lie below this folder, and a socket's path may have 107 bytes only.
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-job-", dir="/tmp"))
    environment = {
        **clean_environment(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "WRONG_TOKEN": secrets.token_hex(32),
        "RAY_FOLDER": str(ray_folder),
        "SCRIPT": str(SCRIPT),
    }
    try:
        subprocess.run(
            [*isolated, "bash", "-c", HEAD_AND_SUBMISSIONS], cwd=folder, env=environment, check=True, timeout=540
        )
        yield Submissions(folder)
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


def test_job_leaves_the_files_of_a_local_run(submissions: Submissions) -> None:
    ended = submissions["whole-run"]
    assert ended.code == 0, ended.out + ended.err
    assert "precompute: 3 parts computed" in ended.out
    assert "Results by evaluation set" in ended.out
    for table in ("evidence", "coefficients", "predictions"):
        ours, theirs = (files_of(submissions.folder / run / table) for run in ("run", "local"))
        assert ours == theirs
    parts = {f"{method}/cells/part-{part:05d}.parquet" for method in METHODS for part in range(-(-ROWS // PART_ROWS))}
    assert set(files_of(submissions.folder / "run" / "predictions")) == parts


def test_job_log_holds_our_lines_only(submissions: Submissions) -> None:
    ended = submissions["whole-run"]
    assert ended.err == ""
    assert "Traceback" not in ended.out
    assert "Warning" not in ended.out
    assert "(raylet)" not in ended.out


def test_wrong_token_is_one_line(submissions: Submissions) -> None:
    ended = submissions["wrong-token"]
    assert ended.code == 2
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith("error: http://127.0.0.1:8265: Authentication failed")
    assert "token" in line


def test_exit_code_of_a_mistake_stays_2(submissions: Submissions) -> None:
    ended = submissions["mistake"]
    assert ended.code == 2
    (line,) = (line for line in ended.out.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {submissions.folder}/mistake.yaml: unknown key part_row; did you mean part_rows?")
    assert "ended with exit code 2" in ended.err


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ([], {}, "error: no manifest given; usage: "),
        (["absent.yaml"], {}, "error: absent.yaml: no such manifest"),
        (["tiny.yaml"], {}, "error: no cluster given; use --address "),
        (["tiny.yaml", "--address", "head:6379"], {}, "error: head:6379: not the address of a job server"),
        (["tiny.yaml", "--worker", "2"], {}, "error: --worker: unknown option"),
        (["tiny.yaml", "--address=http://127.0.0.1:1"], {"PATH": "/usr/bin:/bin"}, "error: no 'ray' on PATH"),
        (
            ["tiny.yaml", "--address=http://127.0.0.1:1"],
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "absent"},
            "error: RAY_AUTH_MODE is token, but RAY_AUTH_TOKEN is not set and absent holds no token",
        ),
        (["tiny.yaml", "--address=http://127.0.0.1:1", "--", "--onlin"], {}, "error: unrecognized arguments: --onlin"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path: Path, arguments: list[str], changes: dict[str, str], message: str) -> None:
    (tmp_path / "tiny.yaml").write_text(MANIFEST)
    environment = clean_environment() | changes
    ended = subprocess.run(
        [str(SCRIPT), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(message)


def isolation() -> list[str]:
    """Command that runs another one in namespaces of its own; skips the test where that is not permitted."""
    command = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    tried = None
    if shutil.which("unshare"):
        tried = subprocess.run([*command, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, timeout=30)
    if tried is None or tried.returncode != 0:
        pytest.skip(f"no namespace of its own for a Ray head: {tried.stderr.strip() if tried else 'no unshare here'}")
    return [*command, "tini", "--"] if shutil.which("tini") else command


def clean_environment() -> dict[str, str]:
    """This environment with the commands of this Python first, and without settings of another cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def prepare(folder: Path) -> None:
    """A tiny pair, its archive, and a run of the local engine in ``local``."""
    shutil.copy(Path(demo.__file__).parent / "tiny.json", folder)
    torch.manual_seed(0)
    generalist = load_architecture(str(folder / "tiny.json")).build().state_dict()
    expert = {
        name: tensor + 0.02 * torch.randn_like(tensor) if torch.isfinite(tensor).all() else tensor
        for name, tensor in generalist.items()
    }
    for name, state in (("generalist", generalist), ("expert", expert)):
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / f"{name}.safetensors")
    (folder / "tiny.yaml").write_text(MANIFEST)
    (folder / "mistake.yaml").write_text(MANIFEST.replace("part_rows", "part_row"))
    manifest = load_manifest(folder / "tiny.yaml", output=folder / "local")
    engine = choose_engine("local", manifest)
    for stage in (ingest, precompute, infer):
        stage(manifest, engine)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
