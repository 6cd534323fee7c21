"""Archives and runs that a command cannot go on from: one line that says what to do, exit code 2, no traceback."""

import json
from pathlib import Path

import pytest

from tests.cli.factory import SYNTHETIC, Run, Study, only_line
from tests.models.factory import TINY, changed, random_state, write_checkpoint, write_config
from tests.results.run_factory import minimal_run, predicted_part


@pytest.mark.parametrize("command", ["precompute", "infer"])
def test_a_missing_archive_is_one_line_that_says_to_ingest(study: Study, run: Run, command: str) -> None:
    line = only_line(run(command, study.manifest, "--engine", "local"))
    assert str(study.folder / "archives" / "cells") in line
    assert "run `pipeline ingest`" in line


def test_missing_parts_of_an_archive_are_one_line(study: Study, run: Run) -> None:
    study.write(part_rows=2)
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    (study.folder / "archives" / "cells" / "samples" / "part-00001.parquet").unlink()
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert "1 of 3 parts are missing; run `pipeline ingest`" in line


def test_sources_that_are_not_ingested_yet_are_one_line(study: Study, run: Run) -> None:
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    study.write(evaluation_sets=[{"name": "cells", "source": [SYNTHETIC, SYNTHETIC | {"seed": 9}]}])
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert "lists sources that it does not hold yet; run `pipeline ingest`" in line


def test_an_archive_for_another_model_size_is_one_line(study: Study, run: Run) -> None:
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    config = changed(TINY, vision_cfg__image_size=42)
    write_config(study.folder, config)
    for seed, name in enumerate(("generalist", "expert")):
        write_checkpoint(study.folder / f"{name}.safetensors", random_state(study.folder / "tiny.json", seed))
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert "height=28" in line
    assert "height=42" in line
    assert "give another 'archives' folder" in line


def test_ingest_resizes_as_the_checkpoints_say(study: Study, run: Run) -> None:
    """A publisher may state a resize mode (SigLIP: squash): the archive that ingest makes must then fit."""
    card = {"preprocessing": {"resize_mode": "squash"}}
    for seed, name in enumerate(("generalist", "expert")):
        state = random_state(study.folder / "tiny.json", seed)
        write_checkpoint(study.folder / f"{name}.safetensors", state, card)
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    code, _, err = run("precompute", study.manifest, "--engine", "local")
    assert code == 0, err


def test_missing_evidence_is_one_line_that_says_to_precompute(study: Study, run: Run) -> None:
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    line = only_line(run("infer", study.manifest, "--engine", "local"))
    assert line == f"{study.folder / 'run'}: 1 parts have no evidence yet (cells); run `pipeline precompute`"


@pytest.mark.parametrize("changed_threads", [2])
def test_a_run_of_another_numeric_kind_is_one_line(study: Study, run: Run, changed_threads: int) -> None:
    assert run("ingest", study.manifest, "--engine", "local")[0] == 0
    assert run("precompute", study.manifest, "--engine", "local")[0] == 0
    study.write(compute={"device": "cpu", "threads": changed_threads})
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert "threads was 1 and is now 2" in line


@pytest.mark.parametrize("command", ["evaluate", "report", "inspect"])
@pytest.mark.parametrize("place", ["absent", "empty"])
def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, run: Run, command: str, place: str) -> None:
    (tmp_path / "empty").mkdir()
    line = only_line(run(command, tmp_path / place))
    assert line.startswith(str(tmp_path / place))


@pytest.mark.parametrize("command", ["evaluate", "report", "inspect"])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_record_of_a_run_is_one_line(tmp_path: Path, run: Run, command: str, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert str(tmp_path) in only_line(run(command, tmp_path))


def test_an_output_that_cannot_be_a_folder_is_one_line(study: Study, run: Run) -> None:
    (study.folder / "run").write_text("a file")
    line = only_line(run("precompute", study.manifest, "--engine", "local"))
    assert line.startswith(str(study.folder / "run"))


def two_runs(folder: Path) -> list[Path]:
    """Runs in folders of one name over sets of one name; the second is right half as often."""
    runs = [minimal_run(folder / night / "run", {"pbc": None}, ["generalist"]) for night in ("monday", "tuesday")]
    for path, predicted in zip(runs, ([0, 0, 1, 1], [0, 1, 1, 0]), strict=True):
        predicted_part(path, "generalist", "pbc", 0, range(4), predicted, [0, 0, 1, 1])
    return runs


def test_runs_of_one_name_over_sets_of_one_name_are_kept_apart(tmp_path: Path, run: Run) -> None:
    runs = two_runs(tmp_path)
    code, out, err = run("evaluate", *runs, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["accuracy"] for row in rows] == [1.0, 0.5]
    assert [row["evaluation_set"] for row in rows] == [f"{path}/pbc" for path in runs]
    code, out, err = run("evaluate", *runs)
    assert code == 0, err
    assert "100.00" in out
    assert "50.00" in out


def test_a_run_that_is_named_twice_is_one_line(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_runs(tmp_path)
    (tmp_path / "link").symlink_to(first)
    monkeypatch.chdir(tmp_path)
    for again in (first, Path("monday/run"), first / ".." / "run", Path("link")):
        line = only_line(run("evaluate", first, second, again, "--json"))
        assert line == f"{first}, {second}, {again}: a run is named twice; name each once"
    assert not (first / "metrics.parquet").exists()
