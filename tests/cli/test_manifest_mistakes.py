"""Mistakes in a manifest, or in the options of a command: one line that says what to do, exit code 2, no traceback."""

import pytest

from tests.cli.factory import Run, Study, only_line


def test_a_bound_that_is_above_the_other_is_one_line(study: Study, run: Run) -> None:
    study.write(methods=[{"name": "t3", "lambda_min": 0.8, "lambda_max": 0.2}])
    for command in (("validate",), ("precompute", "--engine", "local"), ("infer", "--engine", "local")):
        line = only_line(run(command[0], study.manifest, *command[1:]))
        assert "t3: lambda_min must be <= lambda_max, got 0.8 and 0.2" in line


@pytest.mark.parametrize("command", ["validate", "ingest", "precompute", "infer", "finetune"])
def test_a_typo_in_the_manifest_is_one_line_with_the_nearest_key(study: Study, run: Run, command: str) -> None:
    study.write(coefficient={"gama": 0.5})
    line = only_line(run(command, study.manifest))
    assert line.startswith(f"{study.manifest}: unknown key coefficient.gama; did you mean gamma?")


def test_a_value_out_of_bounds_is_one_line(study: Study, run: Run) -> None:
    study.write(coefficient={"gamma": -1})
    assert only_line(run("validate", study.manifest)) == f"{study.manifest}: coefficient.gamma must be > 0, got -1"


def test_an_absent_manifest_is_one_line(study: Study, run: Run) -> None:
    line = only_line(run("precompute", study.folder / "absent.yaml"))
    assert "absent.yaml: cannot be read (No such file or directory); give the path of a manifest" in line


def test_an_unknown_method_is_one_line(study: Study, run: Run) -> None:
    line = only_line(run("infer", study.manifest, "--engine", "local", "--method", "t3-bach"))
    assert line.startswith("--method: unknown method 't3-bach'; did you mean t3-batch?; `pipeline methods` lists all")
    study.write(methods=["t3-bach"])
    line = only_line(run("infer", study.manifest, "--engine", "local"))
    assert line.startswith(f"{study.manifest}: methods[0]: unknown method 't3-bach'; did you mean t3-batch?")


def test_a_plain_model_cannot_be_asked_for_online(study: Study, run: Run) -> None:
    line = only_line(run("infer", study.manifest, "--engine", "local", "--online", "--method", "expert"))
    assert line == "--online: expert needs no λ to be cached; leave out --online, or the method"


def test_the_local_engine_refuses_several_workers_in_one_line(study: Study, run: Run) -> None:
    line = only_line(run("precompute", study.manifest, "--engine", "local", "--workers", "2"))
    assert line == "--workers 2: the local engine is this process alone; use --engine ray"


def test_what_is_right_is_accepted(study: Study, run: Run) -> None:
    code, out, err = run("validate", study.manifest)
    assert code == 0, err
    assert out.splitlines()[-1] == "valid"
