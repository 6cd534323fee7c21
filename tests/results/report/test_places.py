from pathlib import Path

import pytest

from pipeline.errors import RunDirectoryError
from pipeline.results.layout import parts
from pipeline.results.report.histograms import histogram_figures
from pipeline.results.report.places import group_runs, places
from pipeline.store.files import write_json
from tests.results.report.test_histograms import t3_samples


def seeded(run: Path, name: str, seed: int, sets: dict[str, str | None]) -> Path:
    listed = [{"name": item, "condition": condition} for item, condition in sets.items()]
    write_json(run / "run.json", {"manifest": {"name": name, "seeds": {"training": seed}, "evaluation_sets": listed}})
    return run


def test_runs_of_one_manifest_are_its_seeds_in_order(tmp_path: Path) -> None:
    runs = [
        seeded(tmp_path / "a2", "blood", 2, {}),
        seeded(tmp_path / "b0", "breast", 0, {}),
        seeded(tmp_path / "a0", "blood", 0, {}),
    ]
    studies = group_runs(runs)
    assert [study.name for study in studies] == ["blood", "breast"]
    assert studies[0].seeds == (0, 2)
    assert studies[0].runs == (runs[2], runs[0])


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds no run"):
        group_runs([tmp_path])


def test_the_first_seed_that_has_the_set_is_shown_and_named(tmp_path: Path) -> None:
    runs = [seeded(tmp_path / f"s{seed}", "blood", seed, {"pbc": "in-domain", "pbc-c": None}) for seed in (0, 1, 2)]
    for run in runs:
        t3_samples(run, "t3", "pbc", [0.5])
    t3_samples(runs[1], "t3", "pbc-c", [0.6])
    first, second = histogram_figures(runs)
    assert (first.id, first.title) == ("lambda-pbc", "λ on pbc, in-domain")
    assert first.caption.endswith("Training seed 0, the first of 3.")
    assert second.caption.endswith("Training seed 1, number 2 of 3.")


def test_studies_with_sets_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [seeded(tmp_path / name, name, 0, {"test": None, "Test": None}) for name in ("blood", "breast")]
    for run in runs:
        for name in ("test", "Test"):
            t3_samples(run, "t3", name, [0.5])
    found = list(places(runs, lambda run, name: bool(parts(run / "coefficients" / "t3" / name / "samples"))))
    assert [place.slug for place in found] == ["blood-test", "blood-test-2", "breast-test", "breast-test-2"]
    assert [place.title for place in found][::2] == ["blood, test", "breast, test"]
    assert {place.note for place in found} == {""}
