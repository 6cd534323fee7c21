"""Metrics by severity start from the clean images: those that were corrupted, and no others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.results.metrics import evaluate, evaluate_run

from .labelled_runs import Images, corrupted, images, record, write_run

SHARES = {"generalist": 0.6, "expert": 0.75, "t3": 0.8, "soup": 0.7}
WORSE = {"generalist": 0.4, "expert": 0.45, "t3": 0.55, "soup": 0.5}
LABELS = np.repeat([0, 1, 2], [60, 40, 20])


def test_severity_zero_is_of_the_clean_images_that_were_corrupted(tmp_path: Path) -> None:
    """Every third image was pixelated, every second darkened: each corruption starts from its own clean images."""
    clean = images("clean", LABELS, SHARES)
    sets = []
    for name, kept in (("pixelate", np.arange(0, 120, 3)), ("dark", np.arange(0, 120, 2))):
        given = {method: values[kept] for method, values in clean.answers.items()}
        subset = Images("clean", clean.labels[kept], given, [clean.sample_ids[row] for row in kept])
        found = corrupted(subset, name, WORSE, severities=2)
        found.corruption = [name] * len(found.labels)
        found.sample_ids = [f"{name}/{row}" for row in range(len(found.labels))]
        sets.append((subset, found))
    (_, first), (_, second) = sets
    both = replace(
        first,
        name="both",
        labels=np.concatenate([first.labels, second.labels]),
        answers={method: np.concatenate([first.answers[method], second.answers[method]]) for method in SHARES},
        sample_ids=first.sample_ids + second.sample_ids,
        group_ids=first.group_ids + second.group_ids,
        corruption=first.corruption + second.corruption,
        severity=first.severity + second.severity,
    )
    table = evaluate(write_run(tmp_path / "both", [clean, both])).metrics_by_severity
    for (subset, _), corruption in zip(sets, ("pixelate", "dark"), strict=True):
        alone = record(evaluate_run(write_run(tmp_path / corruption, [subset])), method="t3")
        row = record(table, method="t3", corruption=corruption, severity=0)
        assert (row["evaluation_set"], row["condition"], row["samples"]) == ("both", "digital", len(subset.labels))
        for name in ("accuracy", "balanced_accuracy", "err", "ece"):
            assert row[name] == pytest.approx(alone[name])
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
        width = row["accuracy_high"] - row["accuracy_low"]
        assert width == pytest.approx(alone["accuracy_high"] - alone["accuracy_low"], rel=0.25)
    order = table.filter(pl.col("method") == "t3").select("corruption", "severity").rows()
    assert sorted(order) == [(name, severity) for name in ("dark", "pixelate") for severity in (0, 1, 2)]


def test_without_the_clean_set_there_is_no_severity_zero(tmp_path: Path) -> None:
    found = corrupted(images("clean", LABELS, SHARES), "pixelate", WORSE, severities=2)
    assert evaluate(write_run(tmp_path, [found])).metrics_by_severity["severity"].unique().to_list() == [1, 2]
