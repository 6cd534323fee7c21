"""What the evaluation sets hold and where their images come from: the paper's Tables 5 and 6, from the archives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.errors import ArchiveError
from pipeline.results.datasets import dataset_provenance, dataset_statistics
from pipeline.results.report.frame_tables import frame_table
from pipeline.results.report.table import Table

STATISTICS_CAPTION = (
    "Images as stored. Class counts are in the order of the class names; groups are patients or base images where the "
    "source tells them."
)
PROVENANCE_CAPTION = (
    "One row for each source of a set. The first digits of SHA-256 of the source's file, or over those of its files."
)


DIGITS = 16
"""Of a digest, what tells files apart; the archive keeps all 64."""


def dataset_tables(run_jsons: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Statistics and provenance of every evaluation set whose archive is at hand, of each manifest's first run.

    Sets whose archive is gone, or not complete, are named in the caption; no table where none is at hand.
    """
    manifests = {str(run_json["manifest"].get("name")): run_json["manifest"] for run_json in reversed(run_jsons)}
    frames: list[tuple[pl.DataFrame, pl.DataFrame]] = []
    absent: list[str] = []
    for study, manifest in reversed(manifests.items()):
        for entry in manifest.get("evaluation_sets", []):
            name = str(entry["name"]) if len(manifests) == 1 else f"{study}: {entry['name']}"
            try:
                frames.append(_describe(manifest, entry, name))
            except ArchiveError:
                absent.append(name)
    if not frames:
        return []
    statistics, provenance = (pl.concat(found) for found in zip(*frames, strict=True))
    provenance = provenance.with_columns(pl.col("sha256").str.head(DIGITS))
    gone = f" Not at hand: the archive of {', '.join(absent)}." if absent else ""
    return [
        frame_table(
            statistics.drop("class_names"),
            name="data-statistics",
            title="What the sets hold",
            caption=STATISTICS_CAPTION + gone,
            percent=("majority_rate",),
        ),
        frame_table(
            provenance.drop("source"),
            name="data-provenance",
            title="Where the images come from",
            caption=PROVENANCE_CAPTION + gone,
        ),
    ]


def _describe(manifest: Mapping[str, Any], entry: Mapping[str, Any], name: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    archives = {name: Path(str(manifest.get("archives", ""))) / str(entry["name"])}
    source = entry.get("source")
    declared = {name: source} if isinstance(source, list) else {}
    conditions = {name: entry["condition"]} if entry.get("condition") else {}
    return dataset_statistics(archives, conditions, declared), dataset_provenance(archives, declared)
