"""What `pipeline sweep` refuses: one line that says what to do, and nothing is written."""

from pathlib import Path

import pytest

from pipeline.manifest import Manifest
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import modification_times


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "sweep: nothing to vary; give settings such as --gamma 0.5,1,2,4, or a --table"),
        (("--gamma", "0"), "--gamma: t3-batch: gamma must be > 0, got 0"),
        (("--gamma", "1,,2"), "--gamma: has an empty value in '1,,2'; give values such as 1,2"),
        (("--gamma", ""), "--gamma: has an empty value in ''; give values such as 1,2"),
        (("--batch-size", "8,many"), "--batch-size: t3-batch: batch_size must be a whole number, got 'many'"),
        (("--mapping", "linear"), "--mapping: t3-batch: mapping must be sigmoid or rescaled, got 'linear'"),
        (("--rule", "t4"), "--rule: unknown rule 't4'; known: t3, entropy-ratio"),
        (("--grouping", "lamda"), "--grouping: unknown grouping 'lamda'; did you mean lambda?; known: sample"),
        (("--tolerance", "0.1"), "--tolerance: t3-batch has no such setting; add --grouping lambda"),
        (("--rule", "dawin", "--gamma", "2"), "--gamma: dawin-batch has no such setting; add --rule t3"),
        (("--set", "gama=1"), "sweep: no rule or grouping has a setting 'gama'; did you mean gamma?; known: gamma"),
        (("--set", "gamma"), "--set gamma: must be NAME=VALUE,VALUE"),
        (("--lambda-min", "0.5", "--lambda-max", "0.2"), "t3-batch: lambda_min must be <= lambda_max"),
        (("--table", "3"), "--table 3: is no sweep; known: --table 8, --table 9"),
        (("--table", "8", "--figure", "9"), "--table and --figure: are two presets; give one of them"),
        (("--gamma", "1,2", "--max-settings", "1"), "sweep: 2 settings are more than the limit of 1; name fewer"),
        (("--gamma", "1", "--name", "../x"), "--name '../x': must be letters, digits, '.', '_' or '-'"),
        (("--rule", "mine:rule"), "methods: mine:rule is code of your own, which runs only with --allow-code"),
    ],
)
def test_a_mistake_is_one_line(
    finished: Manifest, command_line: CommandLine, options: tuple[str, ...], message: str
) -> None:
    before = modification_times(Path(finished.output))
    code, out, err = command_line("sweep", finished.output, "--engine", "local", *options)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"error: {message}")
    assert modification_times(Path(finished.output)) == before


def test_ten_thousand_settings_are_refused_at_once(finished: Manifest, command_line: CommandLine) -> None:
    values = ",".join(str(number / 100) for number in range(1, 101))
    code, _, err = command_line("sweep", finished.output, "--engine", "local", "--gamma", values, "--delta", values)
    assert code == 2
    assert err.startswith("error: sweep: 10,000 settings are more than the limit of 1,000; name fewer values")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "holds no run.json; run `pipeline precompute` first"),
        ("{}", "run.json holds no manifest; run `pipeline precompute` again"),
        ('{"manifest": {"name": "x"}}', "run.json holds a manifest that this version does not read (output"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line(
    tmp_path: Path, command_line: CommandLine, record: str | None, message: str
) -> None:
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    code, _, err = command_line("sweep", str(tmp_path), "--engine", "local", "--gamma", "1")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message.split(" (", maxsplit=1)[0] in err
