"""The console script itself, in a process of its own: mistakes are one line there too."""

import json
import subprocess
import sys
from pathlib import Path

from tests.cli.factory import Study, only_line, with_nan_weights


def installed(*arguments: object) -> tuple[int, str, str]:
    """The console script itself, in a process of its own."""
    command = [str(Path(sys.executable).parent / "pipeline"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_the_installed_command_prints_one_line_for_a_typo(study: Study) -> None:
    study.write(grouping={"batch-size": 8})
    line = only_line(installed("precompute", study.manifest))
    assert line.startswith(f"{study.manifest}: unknown key grouping.batch-size; did you mean batch_size?")


def test_the_installed_command_prints_one_line_for_a_mismatched_pair(study: Study) -> None:
    with_nan_weights(study)
    assert "NaN" in only_line(installed("validate", study.manifest))


def test_the_installed_command_prints_one_line_for_a_missing_archive_on_ray(study: Study) -> None:
    assert "run `pipeline ingest`" in only_line(installed("precompute", study.manifest))


def test_the_installed_command_prints_the_schema() -> None:
    code, out, err = installed("manifest", "schema")
    assert code == 0, err
    assert json.loads(out)["title"] == "Manifest"
