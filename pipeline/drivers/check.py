"""``pipeline check``: images that training and evaluation share, images a set holds twice, names that do not line up.

Writes ``RUN/checks.json`` and ``RUN/checks/duplicates.parquet``; needs archives, but no models and no run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.checks.class_names import NameFinding, compare_class_names
from pipeline.checks.duplicates import NearSettings
from pipeline.coefficients.evidence import GENERALIST
from pipeline.drivers.check_compare import Comparison, compare_sets
from pipeline.drivers.check_opening import CheckedSet, TrainedSet, find_bases, open_checked_sets, open_trained_sets
from pipeline.drivers.check_training import Lineage, training_lineages
from pipeline.drivers.opening import require_evaluation_sets
from pipeline.manifest.schema import Manifest
from pipeline.results.marks import CHECKS_NAME, sort_codes
from pipeline.stages.sources import resolve_class_names
from pipeline.store.files import write_json
from pipeline.store.fingerprints import Fingerprint, digest_json
from pipeline.store.lease import hold_lease
from pipeline.store.tables import write_table

FORMAT_VERSION = 1
DUPLICATES_SCHEMA = pa.schema(
    [
        ("evaluation_set", pa.string()),
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("kind", pa.string()),
        ("distance", pa.int32()),
        ("dissimilarity", pa.float32()),
        ("difference", pa.float32()),
        ("model", pa.string()),
        ("other", pa.string()),
        ("other_role", pa.string()),
        ("other_sample_id", pa.string()),
        ("via", pa.string()),
    ]
)


def check(manifest: Manifest, others: Sequence[Manifest] = (), settings: NearSettings | None = None) -> dict[str, Any]:
    """Compare every evaluation set with all that the models were trained on; write and return what was found.

    ``others`` are manifests that trained some of the checkpoints. A corrupted image counts as its base image wherever
    that one is in the manifest, and its finding names it (``via``). Sets without an archive are listed as not checked;
    :class:`ProblemsError` when none has one.
    """
    require_evaluation_sets(manifest)
    settings = settings or NearSettings()
    output = Path(manifest.output)
    with hold_lease(output):
        sets, unchecked = open_checked_sets(manifest)
        find_bases(sets)
        lineages = training_lineages(manifest, others)
        experts = [each for each in lineages if each.model in manifest.checkpoints and each.model != GENERALIST]
        trained, unknown = open_trained_sets(lineages, next(iter(sets.values())).archive.geometry)
        entries: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        compared = {name: _compare_with_training(each, trained, settings) for name, each in sets.items()}
        earlier: list[CheckedSet] = []
        for name, each in sets.items():
            entry, found = _check_set(each, sets, trained, compared, earlier, settings)
            entry["class_names"], suspicious = _check_names(each, experts, trained)
            entry["marks"] = _marks(entry, suspicious=suspicious)
            entries[name], rows = entry, rows + found
            earlier.append(each)
        inputs = _inputs(sets, trained, settings, unchecked)
        result = {
            "format": FORMAT_VERSION,
            "fingerprint": inputs.digest,
            "inputs": dict(inputs.inputs),
            "settings": settings.as_json(),
            "models": {each.model: _model_entry(each, trained) for each in lineages},
            "unknown": unknown,
            "not_checked": unchecked,
            "evaluation_sets": entries,
        }
        table = pa.Table.from_pylist(rows, DUPLICATES_SCHEMA)
        write_table(output / "checks" / "duplicates.parquet", table, inputs)
        write_json(output / CHECKS_NAME, result)
    return result


def _compare_with_training(
    each: CheckedSet, trained: Sequence[TrainedSet], settings: NearSettings
) -> dict[int, Comparison]:
    """Comparison with each training set, by its position; one that was read once is compared once."""
    known: dict[int, Comparison] = {}
    found: dict[int, Comparison] = {}
    for position, other in enumerate(trained):
        if other.images is None:
            continue
        key = id(other.images)
        if key not in known:
            everything = np.arange(len(other.images.hashes))
            known[key] = compare_sets(each.images, each.own, other.images, everything, settings)
        found[position] = known[key]
    return found


def _check_set(
    each: CheckedSet,
    sets: Mapping[str, CheckedSet],
    trained: Sequence[TrainedSet],
    compared: Mapping[str, Mapping[int, Comparison]],
    earlier: Sequence[CheckedSet],
    settings: NearSettings,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary of one evaluation set and its rows of ``duplicates.parquet``, in a fixed order."""
    training, training_rows = _with_training(each, sets, trained, compared)
    between, between_rows = _with_earlier(each, earlier, settings)
    within = compare_sets(each.images, each.own, None, each.own, settings)
    within_rows = _rows(each.item.name, within, {"model": None, "other": each.item.name, "other_role": "within"})
    entry = {
        "condition": each.item.condition,
        "images": len(each.images.hashes),
        "through_base": len(each.base_of),
        "training": training,
        "within": _counts(within, within_rows),
        "between": between,
    }
    return entry, [*training_rows, *between_rows, *within_rows]


def _with_training(
    each: CheckedSet,
    sets: Mapping[str, CheckedSet],
    trained: Sequence[TrainedSet],
    compared: Mapping[str, Mapping[int, Comparison]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    summaries, rows = [], []
    for position, other in enumerate(trained):
        if other.images is None:
            continue
        comparison = compared[each.item.name][position]
        labels = {"model": other.model, "other": other.name, "other_role": other.role}
        found = _rows(each.item.name, comparison, labels)
        found += _inherited(each, sets, {base: of_base[position] for base, of_base in compared.items()}, labels)
        rows += found
        summary = {"model": other.model, "set": other.name, "role": other.role, "images": len(other.images.hashes)}
        summaries.append(summary | _counts(comparison, found))
    return summaries, rows


def _with_earlier(
    each: CheckedSet, earlier: Sequence[CheckedSet], settings: NearSettings
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    summaries, rows = [], []
    for other in earlier:
        comparison = compare_sets(each.images, each.own, other.images, other.own, settings)
        labels = {"model": None, "other": other.item.name, "other_role": "evaluation"}
        found = _rows(each.item.name, comparison, labels)
        rows += found
        summaries.append({"set": other.item.name, "images": len(other.images.hashes)} | _counts(comparison, found))
    return summaries, rows


def _rows(name: str, comparison: Comparison, labels: Mapping[str, str | None]) -> list[dict[str, Any]]:
    return [{"evaluation_set": name, **asdict(each), **labels, "via": None} for each in comparison.duplicates]


def _inherited(
    each: CheckedSet, sets: Mapping[str, CheckedSet], by_set: Mapping[str, Comparison], labels: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    """What holds for the base images of a corrupted set."""
    if not each.base_of:
        return []
    found = {
        (name, duplicate.row): duplicate for name, comparison in by_set.items() for duplicate in comparison.duplicates
    }
    hit = {
        position: found[base, row]
        for position, (base, at) in sorted(each.base_of.items())
        if (base, row := int(sets[base].images.hashes.addresses[at])) in found
    }
    names = each.images.look(np.array(list(hit), dtype=np.int64)).sample_ids
    return [
        {"evaluation_set": each.item.name, **asdict(duplicate), **labels, "via": duplicate.sample_id}
        | {"row": int(each.images.hashes.addresses[position]), "sample_id": name}
        for (position, duplicate), name in zip(hit.items(), names, strict=True)
    ]


def _counts(comparison: Comparison, rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    kinds = [row["kind"] for row in rows]
    return {
        "exact": kinds.count("exact"),
        "near": kinds.count("near"),
        "candidates": comparison.candidates,
        "confirmed": comparison.confirmed,
        "left_out": comparison.left_out,
    }


def _check_names(
    each: CheckedSet, experts: Sequence[Lineage], trained: Sequence[TrainedSet]
) -> tuple[list[dict[str, Any]], bool]:
    """How the set's names relate to what each expert was trained on."""
    names = resolve_class_names(each.item, each.archive.class_names)
    entries, findings = [], []
    for lineage in experts:
        finding = compare_class_names(names, _trained_names(lineage, trained), each.item.condition)
        if finding is not None:
            findings.append(finding)
            entries.append(_name_entry(lineage.model, finding))
    return entries, any(finding.suspicious for finding in findings)


def _trained_names(lineage: Lineage, trained: Sequence[TrainedSet]) -> dict[str, Sequence[str]]:
    own = [other for other in trained if other.model == lineage.model and other.role == "training"]
    described = {other.name: other.class_names for other in own if other.class_names}
    return described or {str(each.get("name")): list(each.get("class_names") or ()) for each in lineage.card_sets}


def _name_entry(model: str, finding: NameFinding) -> dict[str, Any]:
    return {"model": model, **asdict(finding), "explanation": finding.explanation()}


def _marks(entry: Mapping[str, Any], *, suspicious: bool) -> list[str]:
    codes = {
        "leak": any(each["exact"] for each in entry["training"]),
        "near-duplicates": any(each["near"] for each in entry["training"]),
        "duplicates-within": entry["within"]["exact"] > 0,
        "class-names": suspicious,
    }
    return sort_codes([code for code, applies in codes.items() if applies])


def _model_entry(lineage: Lineage, trained: Sequence[TrainedSet]) -> dict[str, Any]:
    own = [other for other in trained if other.model == lineage.model]
    return {
        "init": lineage.init,
        "sets": [
            {"set": other.name, "role": other.role, "images": len(other.images.hashes)}
            for other in own
            if other.images is not None
        ],
    }


def _inputs(
    sets: Mapping[str, CheckedSet], trained: Sequence[TrainedSet], settings: NearSettings, unchecked: Mapping[str, str]
) -> Fingerprint:
    inputs = {
        f"archive.{name}": digest_json([each.archive.part_digest(part) for part in range(each.archive.parts)])
        for name, each in sets.items()
    }
    for other in trained:
        inputs[f"{other.role}.{other.model}.{other.name}"] = digest_json([other.identity, list(other.class_names)])
    return Fingerprint(
        inputs | {"settings": digest_json(settings.as_json()), "not_checked": ", ".join(sorted(unchecked))}
    )
