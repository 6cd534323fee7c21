"""Methods that an archive or a command cannot have: labels that are missing, and --online without a merge per batch."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.stages.selection import select_methods
from tests.main_job.all_methods import IMAGES
from tests.main_job.conftest import CommandLine
from tests.main_job.factory import MANIFEST, read_answers, result_files, run_infer, run_precompute, study


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, pair: Path, archives: Path) -> Path:
    """Archives in which two cells have lost their labels: no source kind of today makes one."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for path in archives.rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(archives)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    part = folder / "cells" / "samples" / "part-00001.parquet"
    table = pq.ParquetFile(part).read()
    labels = pa.array([None, None, *table["label"].to_pylist()[2:]], table["label"].type)
    pq.write_table(table.set_column(table.column_names.index("label"), "label", labels), part)
    return folder


@pytest.mark.parametrize("command", ["precompute", "infer"])
@pytest.mark.parametrize("method", ["oracle", "x-entropy-ratio", "x-entropy-ratio-mixture"])
def test_a_method_that_needs_labels_is_refused_by_name_of_method_and_set_where_one_is_missing(
    pair: Path, unlabelled: Path, tmp_path: Path, command_line: CommandLine, command: str, method: str
) -> None:
    manifest = study(tmp_path, pair, unlabelled, methods=["t3-batch", method])
    code, _, err = command_line(command, str(tmp_path / MANIFEST), "--engine", "local")
    assert code == 2
    assert err.splitlines() == [
        f"error: evaluation set 'cells': method '{method}' needs labels, but 2 images have none; "
        "leave it out, or label them"
    ]
    assert result_files(Path(manifest.output)) == {}


def test_images_without_labels_are_answered_by_every_method_that_needs_none(
    pair: Path, unlabelled: Path, tmp_path: Path
) -> None:
    manifest = study(tmp_path, pair, unlabelled, methods=["ensemble", "soup", "dawin-batch", "entropy-adaptive"])
    run_precompute(manifest)
    run_infer(manifest)
    for item in select_methods(manifest):
        assert read_answers(manifest, item.key)["label"].null_count == 2
        assert len(read_answers(manifest, item.key)) == IMAGES


@pytest.mark.parametrize("command", ["precompute", "infer", "validate"])
@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"name": "t3-batch", "order": "temporal"}, "'t3-batch' with order temporal"),
        ({"name": "own:rule", "labels": "given"}, "'own.rule'"),
    ],
    ids=["stream", "rule"],
)
def test_labels_that_a_stream_or_a_rule_asks_for_must_be_there(
    pair: Path,
    unlabelled: Path,
    tmp_path: Path,
    command_line: CommandLine,
    command: str,
    entry: dict[str, Any],
    named: str,
) -> None:
    study(tmp_path, pair, unlabelled, methods=["t3-batch", entry])
    engine = () if command == "validate" else ("--engine", "local")
    code, _, err = command_line(command, str(tmp_path / MANIFEST), "--allow-code", *engine)
    assert code == 2
    assert err.splitlines() == [
        f"error: evaluation set 'cells': method {named} needs labels, but 2 images have none; "
        "leave it out, or label them"
    ]
    assert result_files(tmp_path / "run") == {}


def test_methods_without_coefficients_are_refused_online(
    pair: Path, archives: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    study(tmp_path, pair, archives, methods=["soup", "oracle", "t3-batch"])
    arguments = ("infer", str(tmp_path / MANIFEST), "--engine", "local", "--online", "--method", "oracle")
    code, _, err = command_line(*arguments)
    assert code == 2
    assert err.splitlines() == ["error: --online: oracle needs no λ to be cached; leave out --online, or the method"]


def test_a_manifest_without_a_method_that_merges_per_batch_is_refused_online(
    pair: Path, archives: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    study(tmp_path, pair, archives, methods=["generalist", "soup", "oracle"])
    code, out, err = command_line("infer", str(tmp_path / MANIFEST), "--engine", "local", "--online")
    assert (code, out) == (2, "")
    assert err.splitlines() == ["error: --online: none of the manifest's methods merges per batch; leave out --online"]
    assert not (tmp_path / "run").exists()
