import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunDirectoryError
from pipeline.manifest.schema import Manifest
from pipeline.methods import METHODS
from pipeline.stages.selection import Selected, embeddings_variant, select, select_methods
from pipeline.store.fingerprints import digest_json
from pipeline.store.run_directory import RunDirectory, Variant, part_name, part_numbers


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def a_manifest(**entries: Any) -> Manifest:
    pair = {"architecture": "ViT-B-32", "generalist": "a", "expert": "b"}
    return Manifest.model_validate({"name": "x", "output": "run", "pair": pair, **entries})


def chosen(method: str, manifest: Manifest, **given: Any) -> Selected:
    return select(manifest, METHODS[method], given)


def rule_folder(manifest: Manifest, method: str = "t3") -> str:
    rule = chosen(method, manifest).rule
    assert rule is not None
    return rule.folder


def grouping_folder(manifest: Manifest, method: str) -> str:
    grouping = chosen(method, manifest).grouping
    assert grouping is not None
    return grouping.folder


def test_every_table_lies_where_the_contract_says(run: RunDirectory) -> None:
    """DESIGN section 6."""
    rule, grouping, method = (Variant(name, {}, {}) for name in ("t3", "arrival", "t3-batch"))
    found = [
        run.record_path,
        run.evidence("cells", 0),
        run.samples(rule, "cells", 12),
        run.batches(rule, grouping, "cells", 1),
        run.embeddings(Variant("cells", {}, {})),
        run.predictions(method, "cells", 3),
        run.merged(Variant("soup", {}, {})),
        run.merged_head(Variant("soup", {}, {}), "cells"),
        run.grid(Variant("oracle", {}, {}), "cells", 2),
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
        "merged/soup/weights.safetensors",
        "merged/soup/cells/part-00000.parquet",
        "grid/oracle/cells/part-00002.parquet",
        "ledger/precompute/cells/part-00003.json",
        "rejects/infer/t3-batch/cells/part-00003.parquet",
    ]


def test_other_settings_are_another_folder_named_by_their_digest() -> None:
    settings = {"gamma": 0.5, "delta": 0.5}
    assert Variant("t3", settings, {}).folder == "t3"
    assert Variant("t3", settings, {"gamma": 0.5}).folder == f"t3@{digest_json(settings)[:8]}"


def test_the_manifests_defaults_have_plain_names() -> None:
    manifest = a_manifest()
    for item in select_methods(a_manifest(methods="all")):
        assert item.key == item.variant.folder == item.method.name
        if item.rule is not None and item.grouping is not None:
            assert (item.rule.folder, item.grouping.folder) == (item.method.rule, item.method.grouping)
    assert [item.key for item in select_methods(manifest)] == ["generalist", "expert", "t3-batch"]


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": 0.5},
        {"delta": 0.4},
        {"tau_expert": 0.1},
        {"tau_generalist": 0.1},
        {"lambda_min": 0.1},
        {"lambda_max": 0.9},
        {"mapping": "rescaled"},
    ],
    ids=str,
)
def test_another_setting_of_the_rule_is_another_folder_of_coefficients_and_merged_methods(
    change: dict[str, Any],
) -> None:
    manifest = a_manifest(coefficient=change)
    folder = rule_folder(manifest)
    assert folder.startswith("t3@")
    assert len(folder) == len("t3@") + 8
    for method in ("t3", "t3-batch", "t3-lambda", "t3-mixture"):
        assert chosen(method, manifest).key.startswith(f"{method}@")
        assert rule_folder(manifest, method) == folder
    for untouched in ("generalist", "expert", "soup", "dawin-batch", "entropy-adaptive"):
        assert chosen(untouched, manifest).key == untouched


@pytest.mark.parametrize("given", [{"gamma": 0.5}, {"mapping": "rescaled"}], ids=str)
def test_a_setting_of_the_entry_means_what_it_means_in_its_section_and_wins(given: dict[str, Any]) -> None:
    in_section, in_entry = chosen("t3-batch", a_manifest(coefficient=given)), chosen("t3-batch", a_manifest(), **given)
    assert in_entry.key == in_section.key
    assert in_entry.rule == in_section.rule
    other = {"gamma": 3.0, "mapping": "sigmoid"}
    assert chosen("t3-batch", a_manifest(coefficient=other), **given, **_but(other, given)).key == in_section.key


def _but(settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    defaults = {"gamma": 1.0, "mapping": "sigmoid"}
    return {name: defaults[name] for name in settings if name not in given}


def test_a_setting_spelled_out_at_its_default_changes_no_name() -> None:
    assert rule_folder(a_manifest(coefficient={"gamma": 1})) == "t3"
    assert rule_folder(a_manifest(coefficient={"gamma": 1.0, "delta": 0.5})) == "t3"
    assert chosen("soup", a_manifest(), alpha=0.5).key == "soup"
    twice = a_manifest(methods=["soup", {"name": "soup", "alpha": 0.5}, {"name": "soup", "alpha": 0.4}])
    assert [item.settings["alpha"] for item in select_methods(twice)] == [0.5, 0.4]


def test_seeds_name_only_the_methods_that_draw() -> None:
    seeded = a_manifest(seeds={"merging": 7, "order": 9})
    assert chosen("mixup", seeded).key.startswith("mixup@")
    for method in ("soup", "t3-batch", "entropy-adaptive"):
        assert chosen(method, seeded).key == method
    stream = chosen("t3-batch", seeded, order="iid")
    assert stream.key != chosen("t3-batch", a_manifest(), order="iid").key
    assert stream.rule == chosen("t3-batch", a_manifest()).rule


def test_a_grouping_is_named_by_the_settings_it_depends_on() -> None:
    """A tolerance is nothing to ``arrival``, and a batch size nothing to ``sample``."""
    tolerant, small = a_manifest(grouping={"tolerance": 0.1}), a_manifest(grouping={"batch_size": 8})
    assert grouping_folder(tolerant, "t3-batch") == "arrival"
    assert grouping_folder(tolerant, "t3-lambda").startswith("lambda@")
    assert grouping_folder(small, "t3") == "sample"
    assert grouping_folder(small, "t3-mixture") == "mixture"
    assert grouping_folder(small, "t3-batch").startswith("arrival@")
    assert grouping_folder(small, "entropy-adaptive") == grouping_folder(small, "t3-batch")
    assert chosen("t3-batch", tolerant).key == "t3-batch"
    assert chosen("t3-lambda", tolerant).key.startswith("t3-lambda@")
    clusters = a_manifest(grouping={"clusters": 5})
    assert grouping_folder(clusters, "t3-mixture").startswith("mixture@")
    assert grouping_folder(clusters, "t3-batch") == "arrival"


def test_embeddings_of_other_settings_lie_apart() -> None:
    assert embeddings_variant("cells", a_manifest().prompts).folder == "cells"
    exact = a_manifest(prompts={"embeddings": "exact"})
    assert embeddings_variant("cells", exact.prompts).folder.startswith("cells@")
    for method in ("t3-batch", "oracle"):
        assert chosen(method, exact).key.startswith(f"{method}@")
    for method in ("expert", "soup", "entropy-adaptive"):
        assert chosen(method, exact).key == method


def test_settings_are_spelled_out_beside_the_folder(run: RunDirectory) -> None:
    variant = Variant("t3", {"gamma": 0.5, "delta": 0.5}, {"gamma": 0.5})
    folder = run.root / "coefficients" / variant.folder
    run.write_variant(folder, variant)
    written = json.loads((folder.parent / f"{variant.folder}.json").read_text())
    assert written == {"name": "t3", "settings": {"gamma": 0.5, "delta": 0.5}, "changed": {"gamma": 0.5}}
    run.write_variant(run.root / "coefficients" / "t3", Variant("t3", {}, {}))
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
