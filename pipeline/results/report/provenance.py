"""Where the figures of a report come from: versions, seeds, numeric kind, settings, fingerprints, manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.results.layout import conditions, method_folders, rule_folders, settings, sort_methods


@dataclass(frozen=True, slots=True)
class Provenance:
    """One run: ``groups`` are titled lists of names and values, ``fingerprints`` digests of predictions by place."""

    title: str
    state: str | None
    groups: Mapping[str, Mapping[str, Any]]
    fingerprints: tuple[tuple[str, str, str], ...]
    manifest: Mapping[str, Any]
    not_scored: tuple[str, ...]


def provenance(run: Path, run_json: dict[str, Any], metrics: pl.DataFrame) -> Provenance:
    """Collect the provenance of one run; ``metrics`` are its own, with a fingerprint for every method and set."""
    manifest = run_json["manifest"]
    seed = manifest.get("seeds", {}).get("training")
    return Provenance(
        title=str(manifest.get("name", run.name)) + ("" if seed is None else f", training seed {seed}"),
        state=run_json.get("state"),
        groups={
            "Versions": run_json.get("versions", {}),
            "Numeric kind": run_json.get("numeric_kind", {}),
            "Seeds": run_json.get("seeds", {}),
            "Fingerprints of the weights": run_json.get("fingerprints", {}),
            "Class names": {
                name: ", ".join(map(str, classes)) for name, classes in run_json.get("class_names", {}).items()
            },
            "Settings by name": _all_settings(run, run_json),
        },
        fingerprints=tuple(metrics.select("evaluation_set", "label", "fingerprint").iter_rows()),
        manifest=manifest,
        not_scored=tuple(_not_scored(run_json, metrics)),
    )


def _not_scored(run_json: dict[str, Any], metrics: pl.DataFrame) -> list[str]:
    """Evaluation sets and methods of the manifest that have no predictions yet."""
    scored_sets = set(metrics["evaluation_set"])
    scored_methods = {name.split("@")[0] for name in metrics["method"]} | set(metrics["method"])
    methods = sort_methods(map(str, run_json["manifest"].get("methods", [])), run_json)
    absent = [f"evaluation set {name}" for name in conditions(run_json) if name not in scored_sets]
    return absent + [f"method {name}" for name in methods if name not in scored_methods]


def _all_settings(run: Path, run_json: Mapping[str, Any]) -> dict[str, Any]:
    """Settings written beside the folders of rules and methods, by ``rule <name>`` or ``method <name>``."""
    found = {
        f"{kind} {name}": settings(run / root / name)
        for kind, root, names in (
            ("rule", "coefficients", rule_folders(run, run_json)),
            ("method", "predictions", method_folders(run, run_json)),
        )
        for name in names
    }
    return {name: value for name, value in found.items() if value is not None}
