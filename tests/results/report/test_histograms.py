from pathlib import Path

import numpy as np
import pytest

from pipeline.results.report.histograms import BINS, describe, histogram_figures, lambda_counts, lambda_histogram
from pipeline.store.files import write_json
from tests.results.run_factory import STUDY_SETS, minimal_run, study_run, write_part


def t3_samples(run: Path, rule: str, name: str, lam: list[float], mapping: str = "sigmoid") -> None:
    columns = {"lambda": np.float32(lam), "branch": ["none"] * len(lam)}
    write_part(run / "coefficients" / rule / name / "samples", 0, columns)
    if "@" in rule:
        changed = {"mapping": mapping} if mapping != "sigmoid" else {"gamma": 0.5}
        write_json(run / "coefficients" / f"{rule}.json", {"settings": {"mapping": mapping}, "changed": changed})


def test_histograms_accumulate_over_parts(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    lam = np.append(generator.random(500), [0.0, 1.0]).astype(np.float32)
    branch = np.where(generator.random(502) < 0.3, "expert-confident", "none")
    for index, chosen in enumerate(np.array_split(np.arange(502), 3)):
        write_part(tmp_path, index, {"lambda": lam[chosen], "branch": branch[chosen].tolist()})
    counts = lambda_counts(tmp_path)
    assert list(counts) == ["none", "expert-confident"]
    assert sum(counts.values()).sum() == 502
    for name, found in counts.items():
        expected = [
            np.sum((lam[branch == name] * BINS).astype(int).clip(max=BINS - 1) == index) for index in range(BINS)
        ]
        np.testing.assert_array_equal(found, expected)


def test_a_figure_of_nothing_can_be_drawn() -> None:
    assert "<svg" in lambda_histogram({"t3": {}}, "empty")
    assert describe({}) == "no samples"


def test_one_figure_for_each_set_in_the_manifests_order(tmp_path: Path) -> None:
    run = study_run(tmp_path / "run", sets=STUDY_SETS[:2])
    figures = histogram_figures([run])
    assert [figure.title for figure in figures][:2] == ["λ on bloodmnist, in-domain", "λ on pbc, base-to-novel"]
    assert len({figure.id for figure in figures}) == len(figures) == 2
    for figure in figures:
        assert set(figure.data["label"]) == {"t3"}
        assert f"{figure.data['count'].sum():,} samples" in figure.description
        assert "branch-generalist-confident" in figure.svg
        assert len(figure.svg) < 30_000
    assert histogram_figures([run])[0].svg == figures[0].svg


def test_the_rescaled_mapping_has_a_panel_of_its_own(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"pbc": None}, ["t3"])
    t3_samples(run, "t3", "pbc", [0.5, 0.55])
    t3_samples(run, "t3@0000000a", "pbc", [0.6], "rescaled")
    t3_samples(run, "t3@0000000b", "pbc", [0.7])
    (figure,) = histogram_figures([run])
    assert figure.title == "λ on pbc"
    assert figure.data["label"].unique(maintain_order=True).to_list() == ["t3", "t3 (mapping=rescaled)"]
    assert ">t3 (mapping=rescaled)</text>" in figure.svg
    assert figure.data.filter(figure.data["count"] > 0)["lambda_low"].to_list() == pytest.approx([0.5, 0.55, 0.6])


def test_without_default_settings_the_first_other_ones_are_drawn(tmp_path: Path) -> None:
    run = minimal_run(tmp_path, {"pbc": None}, ["t3"])
    t3_samples(run, "t3@0000000b", "pbc", [0.7])
    (figure,) = histogram_figures([run])
    assert set(figure.data["label"]) == {"t3 (gamma=0.5)"}
