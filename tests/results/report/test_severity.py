from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.results.report.severity import severity_figures
from pipeline.store.files import write_json

SCHEMA = {
    "method": pl.String,
    "label": pl.String,
    "evaluation_set": pl.String,
    "corruption": pl.String,
    "severity": pl.Int32,
    "samples": pl.Int64,
    "accuracy": pl.Float64,
    "accuracy_low": pl.Float64,
    "accuracy_high": pl.Float64,
}
METHODS = {"generalist": 0.7, "expert": 0.9, "t3": 0.8, "t3@0000000a": 0.5, "soup": 0.6}


def corrupted_run(run: Path, *, seed: int = 0, clean: bool = True, shift: float = 0.0) -> Path:
    listed: list[dict[str, Any]] = [{"name": "pbc"}, {"name": "pbc-c", "condition": "digital"}]
    if clean:
        listed[1]["clean"] = "pbc"
    write_json(
        run / "run.json", {"manifest": {"name": "blood", "seeds": {"training": seed}, "evaluation_sets": listed}}
    )
    rows = [
        (method, method, "pbc-c", corruption, severity, 100, top - 0.05 * severity + shift, top - 0.5, top + 0.05)
        for method, top in METHODS.items()
        for corruption in ("pixelate", "jpeg_compression")
        for severity in range(0 if clean else 1, 6)
    ]
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(run / "metrics_by_severity.parquet")
    return run


def test_lines_begin_with_the_clean_images_of_each_corruption(tmp_path: Path) -> None:
    """What the clean set holds beyond the images that were corrupted is no part of the comparison."""
    run = corrupted_run(tmp_path)
    clean_set = {"method": "expert", "label": "expert", "evaluation_set": "pbc", "samples": 200, "accuracy": 0.1}
    pl.DataFrame([clean_set]).write_parquet(run / "metrics.parquet")
    (figure,) = severity_figures([run])
    assert figure.id == "severity-pbc-c"
    data = figure.data.filter(pl.col("method") == "expert", pl.col("corruption") == "pixelate")
    assert data["severity"].to_list() == [0, 1, 2, 3, 4, 5]
    assert data["accuracy"].to_list() == pytest.approx([0.9, 0.85, 0.8, 0.75, 0.7, 0.65])
    assert data["accuracy_low"].null_count() == 0
    assert data["samples"].to_list() == [100] * 6
    assert (
        "pixelate, accuracy from severity 0 to 5: generalist 70.0 to 45.0 %, expert 90.0 to 65.0 %,"
        in figure.description
    )
    assert "Severity 0 is the same images before they were corrupted. Whiskers: 95 % intervals." in figure.caption


def test_only_main_methods_are_drawn_each_at_its_first_settings(tmp_path: Path) -> None:
    (figure,) = severity_figures([corrupted_run(tmp_path)])
    assert figure.data["method"].unique(maintain_order=True).to_list() == ["generalist", "expert", "t3"]
    for text in ("pixelate", "jpeg_compression", "generalist", "expert", "t3"):
        assert f">{text}</text>" in figure.svg
    assert figure.svg.count("stroke-dasharray") >= 4
    assert len(figure.svg) < 60_000


def test_without_the_clean_set_lines_begin_at_one(tmp_path: Path) -> None:
    (figure,) = severity_figures([corrupted_run(tmp_path, clean=False)])
    assert figure.data["severity"].min() == 1
    assert "The clean images were not scored." in figure.caption


def test_seeds_are_averaged_and_whiskers_span_them(tmp_path: Path) -> None:
    runs = [corrupted_run(tmp_path / str(seed), seed=seed, shift=shift) for seed, shift in enumerate((0.0, 0.06, 0.03))]
    (figure,) = severity_figures(runs)
    row = figure.data.filter(pl.col("method") == "t3", pl.col("severity") == 2, pl.col("corruption") == "pixelate")
    assert row["accuracy"].item() == pytest.approx(0.73)
    assert row["accuracy_low"].item() == pytest.approx(0.7)
    assert row["accuracy_high"].item() == pytest.approx(0.76)
    assert row["seeds"].item() == 3
    assert "Means of 3 training seeds" in figure.caption


def test_a_run_without_severities_has_no_figure(tmp_path: Path) -> None:
    run = corrupted_run(tmp_path)
    (run / "metrics_by_severity.parquet").unlink()
    assert severity_figures([run]) == []
