"""The run directory: where each table of a run lies (DESIGN section 6), and its one record, ``run.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RunDirectoryError
from pipeline.store.files import write_json
from pipeline.store.fingerprints import digest_json


@dataclass(frozen=True, slots=True)
class Variant:
    """A rule, grouping or method at given settings, and those among them that are ``changed`` from their defaults.

    ``folder`` is the plain name at default settings, else the name, ``@`` and 8 hex digits of the settings: another γ
    is another folder, not a conflict.
    """

    name: str
    settings: Mapping[str, Any]
    changed: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Name of the folder that holds this variant's tables."""
        return f"{self.name}@{digest_json(dict(self.settings))[:8]}" if self.changed else self.name


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths inside one run."""

    root: Path

    @property
    def record_path(self) -> Path:
        """The run's record: manifest, versions, seeds, numeric kind, state and ledger totals."""
        return self.root / "run.json"

    def evidence(self, evaluation_set: str, part: int) -> Path:
        """Evidence of one archive part."""
        return self.root / "evidence" / evaluation_set / part_name(part)

    def samples(self, rule: Variant, evaluation_set: str, part: int) -> Path:
        """Coefficients of the samples of one archive part."""
        return self.root / "coefficients" / rule.folder / evaluation_set / "samples" / part_name(part)

    def batches(self, rule: Variant, grouping: Variant, evaluation_set: str, window: int) -> Path:
        """Batch plan of one window."""
        folder = self.root / "coefficients" / rule.folder / evaluation_set / "batches" / grouping.folder
        return folder / part_name(window)

    def embeddings(self, embeddings: Variant) -> Path:
        """Class embeddings at the nodes of the λ curve; the variant is named after its evaluation set."""
        return self.root / "embeddings" / embeddings.folder / part_name(0)

    def predictions(self, method: Variant, evaluation_set: str, part: int) -> Path:
        """Predictions of one slice of the batch plan."""
        return self.root / "predictions" / method.folder / evaluation_set / part_name(part)

    def ledger(self, stage: str, evaluation_set: str, part: int) -> Path:
        """What one part cost. ``stage`` is ``precompute`` or ``infer/<method>``."""
        return self.root / "ledger" / stage / evaluation_set / f"part-{part:05d}.json"

    def merged(self, method: Variant) -> Path:
        """Weights of a static merge, one model for the whole run."""
        return self.root / "merged" / method.folder / "weights.safetensors"

    def merged_head(self, method: Variant, evaluation_set: str) -> Path:
        """Classification head of a static merge for one evaluation set."""
        return self.root / "merged" / method.folder / evaluation_set / part_name(0)

    def grid(self, method: Variant, evaluation_set: str, part: int) -> Path:
        """Logits of one archive part at every λ of a grid."""
        return self.root / "grid" / method.folder / evaluation_set / part_name(part)

    def rejects(self, stage: str, evaluation_set: str, part: int) -> Path:
        """Images that a stage could not use, with the reason."""
        return self.root / "rejects" / stage / evaluation_set / part_name(part)

    def sweep(self, name: str, suffix: str) -> Path:
        """A sweep's settings (``.json``), results (``.parquet``) or figure (``.svg``)."""
        return self.root / "sweeps" / f"{name}{suffix}"

    def read_record(self) -> dict[str, Any]:
        """``run.json``; :class:`RunDirectoryError` when there is none or it is damaged."""
        try:
            record: dict[str, Any] = json.loads(self.record_path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunDirectoryError(f"{self.root}: holds no run.json; run `pipeline precompute` first") from error
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{self.record_path}: cannot be read ({error})") from error
        if not isinstance(record, dict):
            raise RunDirectoryError(f"{self.record_path}: cannot be read (it is no mapping)")
        return record

    def update_record(self, **entries: Any) -> dict[str, Any]:
        """Set ``entries`` in ``run.json`` (the ledger's are merged into it) and return the whole record."""
        record = self.read_record() if self.record_path.exists() else {}
        for key, value in entries.items():
            record[key] = {**record.get(key, {}), **value} if isinstance(value, dict) and key == "ledger" else value
        write_json(self.record_path, record)
        return record

    def write_variant(self, folder: Path, variant: Variant) -> None:
        """Spell out a variant's settings in a JSON file beside its folder, unless they are the defaults."""
        path = folder.parent / f"{folder.name}.json"
        content = {"name": variant.name, "settings": dict(variant.settings), "changed": dict(variant.changed)}
        if variant.changed and not path.exists():
            write_json(path, content)


def part_name(part: int) -> str:
    """File name of a part."""
    return f"part-{part:05d}.parquet"


def part_numbers(folder: Path) -> list[int]:
    """Numbers of the parts in ``folder``, ascending; empty when there is no such folder."""
    return sorted(int(path.stem.removeprefix("part-")) for path in folder.glob("part-*.parquet"))
