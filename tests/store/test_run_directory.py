import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunDirectoryError
from pipeline.manifest.schema import Coefficient, Grouping, Manifest
from pipeline.stages.variants import embeddings_variant, grouping_variant, method_variant, rule_variant
from pipeline.store.fingerprints import digest_json
from pipeline.store.run_directory import RunDirectory, Variant, part_name, part_numbers


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def a_manifest(**entries: Any) -> Manifest:
    pair = {"architecture": "ViT-B-32", "generalist": "a", "expert": "b"}
    return Manifest.model_validate({"name": "x", "output": "run", "pair": pair, **entries})


def test_every_table_lies_where_the_contract_says(run: RunDirectory) -> None:
    """DESIGN section 6."""
    rule, grouping = Variant("t3", {}, is_default=True), Variant("arrival", {}, is_default=True)
    method = Variant("t3-batch", {}, is_default=True)
    found = [
        run.record_path,
        run.evidence("cells", 0),
        run.samples(rule, "cells", 12),
        run.batches(rule, grouping, "cells", 1),
        run.embeddings(Variant("cells", {}, is_default=True)),
        run.predictions(method, "cells", 3),
        run.ledger("precompute", "cells", 3),
        run.rejects("infer/t3-batch", "cells", 3),
    ]
    assert [path.relative_to(run.root).as_posix() for path in found] == [
        "run.json",
        "evidence/cells/part-00000.parquet",
        "coefficients/t3/cells/samples/part-00012.parquet",
        "coefficients/t3/cells/batches/arrival/part-00001.parquet",
        "embeddings/cells/part-00000.parquet",
        "predictions/t3-batch/cells/part-00003.parquet",
        "ledger/precompute/cells/part-00003.json",
        "rejects/infer/t3-batch/cells/part-00003.parquet",
    ]


def test_other_settings_are_another_folder_named_by_their_digest() -> None:
    settings = {"gamma": 0.5}
    assert Variant("t3", settings, is_default=True).folder == "t3"
    assert Variant("t3", settings, is_default=False).folder == f"t3@{digest_json(settings)[:8]}"


def test_the_manifests_defaults_have_plain_names() -> None:
    manifest = a_manifest()
    assert rule_variant(manifest.coefficient).folder == "t3"
    for kind in ("arrival", "lambda", "sample"):
        assert grouping_variant(kind, manifest.grouping).folder == kind
    for method in ("generalist", "expert", "t3", "t3-batch", "t3-lambda"):
        assert method_variant(method, manifest).folder == method


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": 0.5},
        {"delta": 0.4},
        {"tau_expert": 0.1},
        {"tau_generalist": 0.1},
        {"lambda_min": 0.1},
        {"lambda_max": 0.9},
    ],
    ids=str,
)
def test_another_setting_of_the_rule_is_another_folder_of_coefficients_and_merged_methods(
    change: dict[str, float],
) -> None:
    manifest = a_manifest(coefficient=change)
    folder = rule_variant(manifest.coefficient).folder
    assert folder.startswith("t3@")
    assert len(folder) == len("t3@") + 8
    for method in ("t3", "t3-batch", "t3-lambda"):
        assert method_variant(method, manifest).folder.startswith(f"{method}@")
    for plain in ("generalist", "expert"):
        assert method_variant(plain, manifest).folder == plain


def test_a_setting_spelled_out_at_its_default_changes_no_name() -> None:
    assert rule_variant(Coefficient(gamma=1)).folder == rule_variant(Coefficient(gamma=1.0, delta=0.5)).folder == "t3"


def test_a_grouping_is_named_by_the_settings_it_depends_on() -> None:
    """A tolerance is nothing to ``arrival``, and a batch size nothing to ``sample``."""
    tolerant, small = Grouping(kind="lambda", tolerance=0.1), Grouping(batch_size=8)
    assert grouping_variant("arrival", tolerant).folder == "arrival"
    assert grouping_variant("lambda", tolerant).folder.startswith("lambda@")
    assert grouping_variant("sample", small).folder == "sample"
    assert grouping_variant("arrival", small).folder.startswith("arrival@")
    manifest = a_manifest(grouping={"tolerance": 0.1})
    assert method_variant("t3-batch", manifest).folder == "t3-batch"
    assert method_variant("t3-lambda", manifest).folder.startswith("t3-lambda@")


def test_embeddings_of_other_settings_lie_apart() -> None:
    assert embeddings_variant("cells", a_manifest().prompts).folder == "cells"
    exact = a_manifest(prompts={"embeddings": "exact"})
    assert embeddings_variant("cells", exact.prompts).folder.startswith("cells@")
    assert method_variant("t3-batch", exact).folder.startswith("t3-batch@")
    assert method_variant("expert", exact).folder == "expert"


def test_settings_are_spelled_out_beside_the_folder(run: RunDirectory) -> None:
    variant = Variant("t3", {"gamma": 0.5, "delta": 0.5}, is_default=False)
    folder = run.root / "coefficients" / variant.folder
    run.write_variant(folder, variant)
    written = json.loads((folder.parent / f"{variant.folder}.json").read_text())
    assert written == {"name": "t3", "settings": {"gamma": 0.5, "delta": 0.5}}
    run.write_variant(run.root / "coefficients" / "t3", Variant("t3", {}, is_default=True))
    assert [path.name for path in folder.parent.iterdir()] == [f"{variant.folder}.json"]


def test_the_record_grows_entry_by_entry_and_keeps_the_ledgers_of_other_stages(run: RunDirectory) -> None:
    run.update_record(state="precomputing", ledger={"precompute": {"samples": 1}})
    run.update_record(state="inferred", ledger={"infer": {"samples": 2}}, seeds={"training": 0})
    run.update_record(seeds={"other": 1}, ledger={"infer": {"samples": 3}})
    assert run.read_record() == {
        "state": "inferred",
        "seeds": {"other": 1},
        "ledger": {"precompute": {"samples": 1}, "infer": {"samples": 3}},
    }


def test_a_run_without_a_record_says_which_stage_is_missing(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match=r"holds no run\.json; run `pipeline precompute` first"):
        run.read_record()


@pytest.mark.parametrize("content", ["{", "", "[1", "\x00", "[]", "3"])
def test_a_damaged_record_is_refused_by_name(run: RunDirectory, content: str) -> None:
    run.root.mkdir()
    run.record_path.write_text(content)
    with pytest.raises(RunDirectoryError, match=r"run\.json: cannot be read") as caught:
        run.read_record()
    assert len(str(caught.value).splitlines()) == 1


def test_parts_are_listed_in_order_and_strays_are_not(tmp_path: Path) -> None:
    for part in (100000, 2, 0):
        (tmp_path / part_name(part)).touch()
    for stray in (".tmp-1-ab-part-00003.parquet", "part-00004.json", "notes.txt"):
        (tmp_path / stray).touch()
    assert part_numbers(tmp_path) == [0, 2, 100000]
    assert part_numbers(tmp_path / "absent") == []
