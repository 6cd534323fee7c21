"""One pair, one set of archives and finished runs, shared by all tests that only read them."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.drivers.ingest import ingest
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest
from tests.main_job.all_methods import Everything, run_everything
from tests.main_job.factory import PlainClip, make_pair, make_sources, run_both, study
from tests.main_job.sources import SITES

CommandLine = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory, pair: Path) -> Path:
    """490 images in 4 + 1 parts from two sources, in 2 + 1 windows. Not to be written to."""
    folder = tmp_path_factory.mktemp("archives")
    manifest = study(tmp_path_factory.mktemp("ingest"), pair, folder)
    summary = ingest(manifest, LocalEngine(manifest))
    assert (summary.samples, summary.rejected) == (490, 0)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, pair: Path, archives: Path) -> Manifest:
    """A run of both stages with all methods. Not to be written to."""
    return run_both(study(tmp_path_factory.mktemp("finished"), pair, archives))


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory, pair: Path, archives: Path) -> Everything:
    """A run of all methods, and of some again at other settings. Not to be written to."""
    return run_everything(tmp_path_factory.mktemp("everything"), pair, archives)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of three sources by name."""
    return make_sources(tmp_path_factory.mktemp("models"), SITES)


@pytest.fixture(scope="session")
def plain() -> PlainClip:
    return PlainClip()


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Run the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray as the engine itself starts it, in a folder of its own, where an earlier `ray start` left its address."""
    import ray

    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
