"""Options of the numeric kind through both stages: recorded, part of the fingerprints, refused when they change."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import NumericKindError
from pipeline.manifest import Manifest
from tests.main_job.factory import (
    assert_same_files,
    copy_run,
    matrix,
    read_predictions,
    result_files,
    run_both,
    run_infer,
    run_precompute,
    study,
)

USUAL_KIND = {"device", "instruction_set", "torch", "precision", "threads", "tile"}
OPTIONS = [{"memory_format": "channels_last"}, {"compile": True}]


def recorded_kind(manifest: Manifest) -> dict[str, str]:
    kind: dict[str, str] = json.loads((Path(manifest.output) / "run.json").read_text())["numeric_kind"]
    return kind


def test_a_run_without_options_records_what_it_always_did(finished: Manifest) -> None:
    assert set(recorded_kind(finished)) == USUAL_KIND


@pytest.mark.parametrize("option", OPTIONS, ids=["channels_last", "compile"])
def test_an_option_changes_the_kind_and_logits_only_to_rounding(
    finished: Manifest, pair: Path, tmp_path: Path, option: dict[str, object]
) -> None:
    methods = ["t3", "t3-batch", "soup"]
    manifest = run_both(study(tmp_path / "first", pair, Path(finished.archives), methods=methods, compute=option))
    assert set(recorded_kind(manifest)) == USUAL_KIND | set(option)
    ours, theirs = (read_predictions(run, "t3-batch") for run in (manifest, finished))
    assert ours["prediction"].equals(theirs["prediction"])
    np.testing.assert_allclose(matrix(ours, "probabilities"), matrix(theirs, "probabilities"), rtol=0, atol=1e-4)

    online = study(tmp_path / "online", pair, Path(finished.archives), methods=["t3-batch"], compute=option)
    run_infer(online, online=True)
    cached = result_files(Path(manifest.output), "predictions")
    found = result_files(Path(online.output), "predictions")
    assert_same_files(found, {name: content for name, content in cached.items() if name in found})


@pytest.mark.parametrize("option", OPTIONS, ids=["channels_last", "compile"])
def test_a_run_does_not_go_on_with_other_options(
    finished: Manifest, pair: Path, tmp_path: Path, option: dict[str, object]
) -> None:
    (name,) = option
    with pytest.raises(NumericKindError, match=f"{name} was .* and is now "):
        run_infer(copy_run(finished, tmp_path / "added", pair, compute=option))
    begun = study(tmp_path / "begun", pair, Path(finished.archives), compute={"memory_format": "channels_last"})
    run_precompute(begun)
    dropped = study(tmp_path / "begun", pair, Path(finished.archives))
    with pytest.raises(NumericKindError, match="memory_format was channels_last and is now contiguous"):
        run_infer(dropped)
