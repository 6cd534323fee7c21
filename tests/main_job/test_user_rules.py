"""Rules of the user's own: found, allowed, checked, fingerprinted, and as good as the project's own."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.drivers.infer import infer
from pipeline.engines.engine import Job
from pipeline.engines.local import LocalEngine
from pipeline.errors import ProblemsError, StaleCacheError
from pipeline.manifest import Manifest
from pipeline.stages.selection import select_methods
from pipeline.stages.work import Report
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import (
    MANIFEST,
    copy_run,
    matrix,
    modification_times,
    read_answers,
    read_evidence,
    read_parts,
    result_files,
    run_cli,
    study,
)

MARGIN = """
import numpy as np


def margin(evidence, sharpness=1.0):
    doubt = evidence.entropy_generalist - evidence.entropy_expert
    return np.clip(0.5 + sharpness * evidence.js * doubt, 0.0, 1.0)
"""
BAD = {
    "two columns": ("return np.full((len(evidence), 2), 0.5)", "one λ for each of the 7 samples"),
    "one too few": ("return np.full(len(evidence) - 1, 0.5)", "one λ for each of the 7 samples"),
    "a number": ("return 0.5", "one λ for each of the 7 samples"),
    "nothing": ("return None", "must return an array of numbers"),
    "text": ("return ['x'] * len(evidence)", "must return an array of numbers"),
    "nan": ("return np.where(np.arange(len(evidence)) == 3, np.nan, 0.5)", "λ must lie in [0, 1], got λ[3] = nan"),
    "above": ("return np.full(len(evidence), 1.01)", "λ must lie in [0, 1], got λ[0] = 1.01"),
    "below": ("return np.full(len(evidence), -1e-3)", "λ must lie in [0, 1], got λ[0] = -0.001"),
    "raises": ("raise KeyError('first\\nsecond')", "raised KeyError"),
    "exits": ("raise SystemExit(0)", "raised SystemExit"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, where modules are looked up first; what a command adds to sys.path is taken off again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def module(folder: Path, source: str) -> str:
    """Write a module with a name of its own, since a process imports a name once; the name."""
    name = f"rules_{folder.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(source)
    return name


def rule_samples(manifest: Manifest, position: int = 0) -> Any:
    item = select_methods(manifest)[position]
    assert item.rule is not None
    return read_parts(Path(manifest.output) / "coefficients" / item.rule.folder / "cells" / "samples")


def expected_margin(manifest: Manifest, sharpness: float) -> np.ndarray[Any, Any]:
    evidence = read_evidence(manifest)
    doubt = np.subtract(*(evidence[f"entropy_{end}"].to_numpy().astype(np.float64) for end in ("generalist", "expert")))
    lam: np.ndarray[Any, Any] = np.clip(0.5 + sharpness * evidence["js"].to_numpy() * doubt, 0.0, 1.0)
    return lam


def test_a_rule_of_ones_own_runs_through_both_stages_where_code_is_allowed(
    finished: Manifest, pair: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(MARGIN)
    methods = [{"name": "own:margin-batch", "sharpness": 2.0}, "own:margin-mixture"]
    manifest = copy_run(finished, tmp_path, pair, methods=methods)
    arguments = ("infer", str(tmp_path / MANIFEST), "--engine", "local", "--allow-code", "--json")
    code, out, err = run_cli(*arguments, PYTHONPATH=str(tmp_path))
    assert code == 0, err
    summary = json.loads(out)
    assert summary["parts"] == {"computed": 10, "skipped": 0}
    assert summary["ledger"]["counts"]["image_forward_calls"]["generalist"] == 0
    for position, sharpness in enumerate((2.0, 1.0)):
        item = select_methods(manifest)[position]
        assert item.method.name == ["own.margin-batch", "own.margin-mixture"][position]
        found = rule_samples(manifest, position)["lambda"].to_numpy()
        np.testing.assert_allclose(found, expected_margin(manifest, sharpness), rtol=0, atol=1e-6)
        predictions = read_answers(manifest, item.key)
        assert predictions["row"].to_pylist() == read_evidence(manifest)["row"].to_pylist()
        assert np.std(predictions["lambda"].to_numpy()) > 0


def test_a_rule_that_says_what_a_rule_of_the_project_says_gives_its_bytes(
    finished: Manifest, pair: Path, folder: Path, command_line: CommandLine
) -> None:
    name = module(
        folder,
        "import numpy as np\n\ndef dawin(evidence):\n"
        "    return 1.0 / (1.0 + np.exp(evidence.entropy_expert - evidence.entropy_generalist))\n",
    )
    manifest = copy_run(finished, folder, pair, methods=[f"{name}:dawin-batch", "dawin-batch"])
    code, _, err = command_line("infer", str(folder / MANIFEST), "--engine", "local", "--allow-code")
    assert code == 0, err
    keys = [item.key for item in select_methods(manifest)]
    ours, theirs = (read_answers(manifest, key) for key in keys)
    assert len(set(keys)) == 2
    assert ours.equals(theirs)


def test_settings_of_an_entry_are_keyword_arguments_and_have_folders_of_their_own(
    finished: Manifest, pair: Path, folder: Path, command_line: CommandLine
) -> None:
    name = module(folder, MARGIN)
    methods = [{"name": f"{name}:margin-batch", "sharpness": sharpness} for sharpness in (0.25, 4)]
    manifest = copy_run(finished, folder, pair, methods=[*methods, f"{name}:margin-lambda"])
    code, _, err = command_line("precompute", str(folder / MANIFEST), "--engine", "local", "--allow-code")
    assert code == 0, err
    for position, sharpness in enumerate((0.25, 4.0, 1.0)):
        found = rule_samples(manifest, position)["lambda"].to_numpy()
        np.testing.assert_allclose(found, expected_margin(manifest, sharpness), rtol=0, atol=1e-6)
    folders = [path for path in (Path(manifest.output) / "coefficients").glob(f"{name}.margin*") if path.is_dir()]
    assert sorted(path.name.partition("@")[0] for path in folders) == [f"{name}.margin"] * 3
    spelled = [json.loads(path.with_name(f"{path.name}.json").read_text()) for path in folders if "@" in path.name]
    assert sorted(entry["settings"]["sharpness"] for entry in spelled) == [0.25, 4]


def test_an_argument_that_the_function_does_not_take_is_one_line(
    finished: Manifest, pair: Path, folder: Path, command_line: CommandLine
) -> None:
    name = module(folder, MARGIN)
    copy_run(finished, folder, pair, methods=[{"name": f"{name}:margin-batch", "sharpnes": 2.0}])
    assert_refused(command_line, folder, f"rule {name}:margin: raised TypeError", "sharpnes")


def assert_refused(command_line: CommandLine, folder: Path, *words: str) -> None:
    before = result_files(folder / "run")
    for command in ("precompute", "infer"):
        code, _, err = command_line(command, str(folder / MANIFEST), "--engine", "local", "--allow-code")
        assert code == 2, err
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        for word in words:
            assert word in line
    assert result_files(folder / "run") == before


@pytest.mark.parametrize("mistake", BAD)
def test_a_rule_that_gives_no_lambda_is_one_line_before_any_image_is_read(
    pair: Path, archives: Path, folder: Path, command_line: CommandLine, mistake: str
) -> None:
    body, said = BAD[mistake]
    name = module(folder, f"import numpy as np\n\ndef rule(evidence):\n    {body}\n")
    study(folder, pair, archives, methods=[f"{name}:rule-batch"])
    assert_refused(command_line, folder, f"rule {name}:rule: ", said)
    assert not (folder / "run" / "evidence").exists()


def test_a_rule_that_fails_on_real_evidence_only_is_one_line_too(
    finished: Manifest, pair: Path, folder: Path, command_line: CommandLine
) -> None:
    name = module(
        folder,
        "import numpy as np\n\ndef rule(evidence):\n"
        "    lam = np.full(len(evidence), 0.5)\n    lam[100:] = np.nan\n    return lam\n",
    )
    copy_run(finished, folder, pair, methods=[f"{name}:rule-batch"])
    assert_refused(command_line, folder, f"rule {name}:rule: λ must lie in [0, 1], got λ[100] = nan")


@pytest.mark.parametrize(
    ("source", "reference", "said"),
    [
        (None, "no_such_module:rule", "module 'no_such_module' cannot be imported (ModuleNotFoundError"),
        (MARGIN, "{name}:median", "has no function 'median'; check the name"),
        ("margin = 0.5\n", "{name}:margin", "has no function 'margin'; check the name"),
        ("def margin(evidence) return 0.5\n", "{name}:margin", "cannot be imported (SyntaxError"),
        ("1 / 0\n", "{name}:margin", "cannot be imported (ZeroDivisionError"),
        ("raise SystemExit(3)\n", "{name}:margin", "cannot be imported (SystemExit"),
    ],
    ids=["no module", "no function", "no callable", "no syntax", "raises", "exits"],
)
def test_a_rule_that_is_not_there_is_one_line(
    pair: Path, archives: Path, folder: Path, command_line: CommandLine, source: str | None, reference: str, said: str
) -> None:
    name = module(folder, source or "")
    rule = reference.format(name=name)
    study(folder, pair, archives, methods=[f"{rule}-batch"])
    assert_refused(command_line, folder, f"rule {rule}: ", said)


@pytest.mark.parametrize("command", ["precompute", "infer", "validate"])
def test_code_is_not_even_imported_without_permission(
    finished: Manifest, pair: Path, folder: Path, command_line: CommandLine, command: str
) -> None:
    name = module(folder, "from pathlib import Path\n\nPath('imported').touch()\n")
    manifest = copy_run(finished, folder, pair, methods=[f"{name}:margin-batch"])
    before = modification_times(Path(manifest.output))
    engine = [] if command == "validate" else ["--engine", "local"]
    code, _, err = command_line(command, str(folder / MANIFEST), *engine)
    assert code == 2
    assert err.splitlines() == [
        f"error: methods: {name}:margin is code of your own, which runs only with --allow-code; "
        "add that, or name a rule from `pipeline methods`"
    ]
    assert not (folder / "imported").exists()
    assert modification_times(Path(manifest.output)) == before


def test_another_source_of_the_module_makes_the_cached_coefficients_stale(
    finished: Manifest, pair: Path, folder: Path, command_line: CommandLine
) -> None:
    name = module(folder, MARGIN)
    manifest = copy_run(finished, folder, pair, methods=[f"{name}:margin-batch"])
    arguments = ("precompute", str(folder / MANIFEST), "--engine", "local", "--allow-code")
    code, _, err = command_line(*arguments)
    assert code == 0, err
    before = result_files(Path(manifest.output))
    module(folder, MARGIN.replace("0.5 +", "0.4 +"))
    code, _, err = run_cli(*arguments, PYTHONPATH=str(folder))
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert "rule_source changed (cached" in line
    assert "give another 'output'" in line
    assert result_files(Path(manifest.output)) == before


def test_online_a_rule_of_ones_own_gives_the_bytes_of_the_cached_one(
    finished: Manifest, pair: Path, archives: Path, folder: Path, command_line: CommandLine
) -> None:
    name = module(folder, MARGIN)
    methods = [f"{name}:margin-lambda"]
    cached = copy_run(finished, folder / "cached", pair, methods=methods)
    online = study(folder / "online", pair, archives, methods=methods)
    for manifest, flags in ((cached, []), (online, ["--online"])):
        path = str(Path(manifest.output).parent / MANIFEST)
        code, _, err = command_line("infer", path, "--engine", "local", "--allow-code", *flags)
        assert code == 0, err
    (item,) = select_methods(cached)
    found, expected = (read_answers(manifest, item.key) for manifest in (online, cached))
    assert found.equals(expected)
    assert len(matrix(found, "probabilities")) == 490


@dataclass(frozen=True)
class EditingEngine:
    """Another version of a module lies there by the time that the workers start, each in a fresh process or not."""

    manifest: Manifest
    path: Path
    source: str
    forget: bool

    def run(self, job: Job, on_report: Callable[[Report], None]) -> None:
        self.path.write_text(self.source)
        if self.forget:
            del sys.modules[self.path.stem]
        LocalEngine(self.manifest).run(job, on_report)

    def numeric_kind(self) -> Mapping[str, str]:
        return LocalEngine(self.manifest).numeric_kind()


@pytest.mark.parametrize("forget", [False, True], ids=["imported before", "imported anew"])
def test_a_rule_whose_file_changed_since_the_run_was_opened_is_refused_by_the_worker(
    pair: Path, archives: Path, folder: Path, forget: bool
) -> None:
    name = module(folder, MARGIN)
    manifest = study(folder, pair, archives, methods=[f"{name}:margin-batch"])
    engine = EditingEngine(manifest, folder / f"{name}.py", MARGIN.replace("0.5 +", "0.25 +"), forget)
    with pytest.raises(StaleCacheError, match=f"rule {name}:margin: its source changed while the run was under way"):
        infer(manifest, engine, online=True, allow_code=True)
    assert result_files(Path(manifest.output), "predictions") == {}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"seed": 1}, "'seed' is a word of this program; give the rule's setting another name"),
        ({"window": 1}, "'window' is a word of this program; give the rule's setting another name"),
        ({"batch_size": 8}, "'batch_size' is a word of this program; give the rule's setting another name"),
        ({"tolerance": 0.1}, "'tolerance' is a word of this program; give the rule's setting another name"),
        ({"clusters": 2}, "'clusters' is a word of this program; give the rule's setting another name"),
        ({"order": "iid"}, "'order' is a word of this program; give the rule's setting another name"),
        ({"sharpness": float("nan")}, "sharpness must be a finite number or text, got nan"),
        ({"sharpness": float("inf")}, "sharpness must be a finite number or text, got inf"),
        ({"sharpness": [1, 2]}, "sharpness must be a finite number or text, got [1, 2]"),
        ({"sharpness": None}, "sharpness must be a finite number or text, got None"),
        ({1: 2}, "settings have names, got 1"),
        ({"labels": "shown"}, "labels must be hidden or given, got 'shown'"),
    ],
    ids=str,
)
def test_a_setting_that_a_rule_cannot_have_is_one_line(
    pair: Path, folder: Path, command_line: CommandLine, setting: dict[Any, Any], said: str
) -> None:
    with contextlib.suppress(ProblemsError):
        study(folder, pair, folder / "archives", methods=["expert", {"name": "own:rule", **setting}])
    code, out, err = command_line("validate", str(folder / MANIFEST), "--allow-code")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {folder / MANIFEST}: methods[1]: ")
    assert said in line


def test_validate_says_that_a_rule_has_no_such_function(
    pair: Path, archives: Path, folder: Path, command_line: CommandLine
) -> None:
    name = module(folder, MARGIN)
    for methods, expected in (([f"{name}:margin-batch"], 0), ([f"{name}:median-batch"], 2)):
        study(folder, pair, archives, methods=methods)
        code, _, err = command_line("validate", str(folder / MANIFEST), "--allow-code")
        assert code == expected, err
    assert err.splitlines() == [f"error: rule {name}:median: module {name!r} has no function 'median'; check the name"]
