"""What an evaluation depends on: the fingerprints of every part that it reads, and the settings that name things."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.results.layout import PredictionFolder, conditions, parts
from pipeline.statistics.bootstrap import CONFIDENCE, REPLICATES, SEED
from pipeline.store.fingerprints import Fingerprint, digest_json
from pipeline.store.tables import read_metadata

IMPLEMENTATION = "2"
"""To be raised whenever the same predictions give other figures, or the tables other columns."""


def evaluation_inputs(
    run: Path,
    run_json: Mapping[str, Any],
    folders: Iterable[PredictionFolder],
    described: Mapping[str, tuple[str, bool]],
    marks: Mapping[str, list[str]],
) -> Fingerprint | None:
    """Fingerprint of the evaluation of these prediction folders, from the footers of the parts; None if one is torn.

    ``described`` holds what methods are called, and whether they look at labels, ``marks`` those of the sets. The order
    of ``folders`` is part of it, as the tables follow it.
    """
    folders = list(folders)
    inputs = {
        "implementation": IMPLEMENTATION,
        "bootstrap": digest_json([REPLICATES, CONFIDENCE, SEED]),
        "methods": digest_json({name: list(value) for name, value in described.items()}),
        "marks": digest_json(dict(marks)),
        "order": digest_json([[folder.method, folder.evaluation_set] for folder in folders]),
        "conditions": digest_json(conditions(dict(run_json))),
        "clean": digest_json({entry["name"]: entry.get("clean") for entry in _sets(run_json)}),
    }
    others: dict[str, Path] = {}
    for name in dict.fromkeys(folder.evaluation_set for folder in folders):
        others[f"evidence of {name}"] = run / "evidence" / name
        others[f"rejects of {name}"] = run / "rejects" / "precompute" / name
    others |= {f"rejects of {folder.method} for {folder.evaluation_set}": folder.rejects for folder in folders}
    try:
        rows: dict[str, Any] = {}
        for folder in folders:
            name = f"predictions of {folder.method} for {folder.evaluation_set}"
            stamps = _stamps(folder.path)
            inputs[name] = Fingerprint({part: fingerprint for part, (fingerprint, _) in stamps.items()}).digest
            rows[name] = {part: extra for part, (_, extra) in stamps.items()}
        inputs |= {name: digest_json(found) for name, path in others.items() if (found := _stamps(path))}
    except _TornError:
        return None
    return Fingerprint(inputs | {"rows": digest_json(rows)})


class _TornError(Exception):
    pass


def _stamps(folder: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Fingerprint of each part, and what else its footer says of the rows that it covers."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for path in parts(folder).values():
        metadata = read_metadata(path)
        if metadata is None:
            raise _TornError
        found[path.stem] = (metadata.fingerprint, metadata.extra | {"count": str(metadata.rows)})
    return found


def _sets(run_json: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = run_json["manifest"].get("evaluation_sets", [])
    return entries
