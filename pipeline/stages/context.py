"""What all parts of one run share, and what each of its tables depends on (DESIGN rule 5).

Inputs are kept flat and by name, down to the weights, so that a refusal can say which of them changed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.archives.archive import Archive, Window
from pipeline.manifest.schema import EvaluationSet, Manifest
from pipeline.stages.sources import resolve_class_names
from pipeline.store.fingerprints import Fingerprint, digest_json
from pipeline.store.run_directory import RunDirectory, Variant

MERGE_LOOP = "merge-loop"


@dataclass(frozen=True, slots=True)
class PairIdentity:
    """Digests of the two ends, their architecture and their preprocessing."""

    generalist: str
    expert: str
    architecture: str
    preprocessing: str

    def as_inputs(self) -> dict[str, str]:
        """The digests by name."""
        return {
            "generalist": self.generalist,
            "expert": self.expert,
            "architecture": self.architecture,
            "preprocessing": self.preprocessing,
        }


@dataclass(frozen=True, slots=True)
class RunContext:
    """One run: its manifest, the identity of its pair and its numeric kind. Cheap to send to workers."""

    manifest: Manifest
    pair: PairIdentity
    kind: Mapping[str, str]

    @property
    def directory(self) -> RunDirectory:
        """Where the run's tables lie."""
        return RunDirectory(Path(self.manifest.output))

    def evaluation_set(self, name: str) -> EvaluationSet:
        """The manifest's entry for an evaluation set."""
        return next(item for item in self.manifest.evaluation_sets if item.name == name)

    def archive(self, name: str) -> Archive:
        """The archive of an evaluation set; ``ArchiveError`` when it is not there."""
        return Archive.open(archive_path(self.manifest, name))

    def windows(self, archive: Archive) -> list[Window]:
        """The archive's windows at the manifest's bounds."""
        bounds = self.manifest.grouping.window
        return archive.windows(bounds.rows, bounds.bytes)

    def class_names(self, name: str, archive: Archive) -> list[str]:
        """Class names as the prompts use them, in label order; ManifestError when their count is not the labels'."""
        return resolve_class_names(self.evaluation_set(name), archive.class_names)

    def embeddings_fingerprint(self, name: str, archive: Archive) -> Fingerprint:
        """What the class embeddings depend on."""
        prompts = self.manifest.prompts
        return Fingerprint(
            {
                **self._model_inputs(name, archive),
                "embeddings": prompts.embeddings,
                "curve_tolerance": str(prompts.curve_tolerance),
            }
        )

    def evidence_fingerprint(self, name: str, archive: Archive, part: int) -> Fingerprint:
        """What the evidence of one archive part depends on: its own part only, so that growth leaves it valid."""
        return Fingerprint({**self._model_inputs(name, archive), "archive_part": archive.part_digest(part)})

    def samples_fingerprint(self, name: str, archive: Archive, part: int, rule: Variant) -> Fingerprint:
        """What the coefficients of one archive part's samples depend on."""
        evidence = self.evidence_fingerprint(name, archive, part)
        return Fingerprint({**evidence.inputs, "rule": _spell(rule)})

    def batches_fingerprint(
        self, name: str, archive: Archive, window: Window, rule: Variant, grouping: Variant
    ) -> Fingerprint:
        """What the batch plan of one window depends on."""
        parts = [archive.part_digest(window.first_part + offset) for offset in range(window.parts)]
        return Fingerprint(
            {
                **self._model_inputs(name, archive),
                "archive_window": digest_json([window.first_part, parts]),
                "rule": _spell(rule),
                "grouping": _spell(grouping),
            }
        )

    def predictions_fingerprint(self, batches: Fingerprint, part: int, method: str) -> Fingerprint:
        """What one slice of a merging method's predictions depends on."""
        prompts = self.manifest.prompts
        return Fingerprint(
            {
                **batches.inputs,
                "embeddings": prompts.embeddings,
                "curve_tolerance": str(prompts.curve_tolerance),
                "method": method,
                "implementation": MERGE_LOOP,
                "slice": str(part),
            }
        )

    def plain_fingerprint(self, name: str, archive: Archive, part: int, method: str) -> Fingerprint:
        """What a plain model's predictions, read from one part of evidence, depend on."""
        return Fingerprint({**self.evidence_fingerprint(name, archive, part).inputs, "method": method})

    def _model_inputs(self, name: str, archive: Archive) -> dict[str, str]:
        return {
            **self.pair.as_inputs(),
            **{f"numeric_kind.{part}": value for part, value in self.kind.items()},
            "class_names": digest_json(self.class_names(name, archive)),
            "prompts": digest_json(self.manifest.prompts.templates),
            "text_tower": self.manifest.prompts.text_tower,
        }


def archive_path(manifest: Manifest, name: str) -> Path:
    """Folder of an evaluation set's archive."""
    return Path(manifest.archives) / name


def _spell(variant: Variant) -> str:
    return json.dumps({"name": variant.name, **variant.settings}, sort_keys=True)
