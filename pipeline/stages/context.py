"""What all parts of one run share, and what each of its tables depends on (DESIGN rule 5).

Inputs are kept flat and by name, down to the weights, so that a refusal can say which of them changed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.archives.archive import Archive, Window
from pipeline.manifest.images import EvaluationSet
from pipeline.manifest.schema import ROLES, Manifest
from pipeline.stages.selection import Selected
from pipeline.stages.sources import resolve_class_names
from pipeline.stages.user_rules import UserRule
from pipeline.store.fingerprints import Fingerprint, digest_json
from pipeline.store.run_directory import RunDirectory, Variant

MERGE_LOOP, EXACT = "merge-loop", "exact"


@dataclass(frozen=True, slots=True)
class ModelsIdentity:
    """Digests of all sources' weights by name, of their architecture and their preprocessing.

    ``has_text``: prompts and the text tower's policy matter to them.
    """

    weights: Mapping[str, str]
    architecture: str
    preprocessing: str
    has_text: bool

    def as_inputs(self) -> dict[str, str]:
        """The digests by name."""
        return {**self.weights, "architecture": self.architecture, "preprocessing": self.preprocessing}


@dataclass(frozen=True, slots=True)
class RunContext:
    """One run: its manifest, the identity of its models, its numeric kind and methods. Cheap to send to workers.

    ``selected`` holds the methods at work by their key, ``user_rules`` the user's own rules by their reference,
    ``per_sample`` how a λ for every image is scored: exact, or merge-loop where that is asked for or all there is.
    """

    manifest: Manifest
    models: ModelsIdentity
    kind: Mapping[str, str]
    selected: Mapping[str, Selected] = field(default_factory=dict)
    user_rules: Mapping[str, UserRule] = field(default_factory=dict)
    per_sample: str = MERGE_LOOP

    @property
    def directory(self) -> RunDirectory:
        """Where the run's tables lie."""
        return RunDirectory(Path(self.manifest.output))

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the source models, in the manifest's order."""
        return tuple(self.models.weights)

    def weights_at(self, lam: float) -> tuple[float, ...]:
        """Weights [K] of the sources at λ: the generalist's, the expert's, and none for any other."""
        generalist, expert = ROLES
        return tuple({generalist: 1.0 - lam, expert: lam}.get(name, 0.0) for name in self.sources)

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
        return Fingerprint({**self._model_inputs(name, archive), **self._embedding_inputs()})

    def evidence_fingerprint(self, name: str, archive: Archive, part: int) -> Fingerprint:
        """What the evidence of one archive part depends on: its own part only, so that growth leaves it valid."""
        return Fingerprint({**self._model_inputs(name, archive), "archive_part": archive.part_digest(part)})

    def samples_fingerprint(self, name: str, archive: Archive, part: int, selected: Selected) -> Fingerprint:
        """What the coefficients of one archive part's samples depend on."""
        evidence = self.evidence_fingerprint(name, archive, part)
        return Fingerprint({**evidence.inputs, **self._rule_inputs(selected)})

    def batches_fingerprint(self, name: str, archive: Archive, window: Window, selected: Selected) -> Fingerprint:
        """What the batch plan of one window depends on."""
        assert selected.grouping is not None
        parts = [archive.part_digest(window.first_part + offset) for offset in range(window.parts)]
        return Fingerprint(
            {
                **self._model_inputs(name, archive),
                "archive_window": digest_json([window.first_part, parts]),
                **self._rule_inputs(selected),
                "grouping": _spell(selected.grouping),
            }
        )

    def predictions_fingerprint(self, batches: Fingerprint, part: int, selected: Selected) -> Fingerprint:
        """What one slice of the predictions of a method that merges per batch depends on."""
        return Fingerprint(
            {
                **batches.inputs,
                **({} if selected.weighs_sources else self._embedding_inputs()),
                "method": selected.method.name,
                "implementation": self.implementation(selected),
                "slice": str(part),
            }
        )

    def implementation(self, selected: Selected) -> str:
        """How a method's batches are scored."""
        return self.per_sample if selected.method.grouping == "sample" else MERGE_LOOP

    def merged_fingerprint(self, selected: Selected) -> Fingerprint:
        """What the weights of a static merge depend on: neither images nor classes."""
        text = {"text_tower": self.manifest.prompts.text_tower} if self.models.has_text else {}
        return Fingerprint({**self._source_inputs(), **text, "method": _spell(selected.variant)})

    def merged_head_fingerprint(self, name: str, archive: Archive, selected: Selected) -> Fingerprint:
        """What the head of a static merge depends on."""
        return Fingerprint({**self._model_inputs(name, archive), "method": _spell(selected.variant)})

    def part_fingerprint(self, name: str, archive: Archive, part: int, selected: Selected) -> Fingerprint:
        """What one archive part's predictions by a method that forms no batches depend on."""
        evidence = self.evidence_fingerprint(name, archive, part)
        embeddings = self._embedding_inputs() if selected.method.combination == "grid" else {}
        return Fingerprint({**evidence.inputs, **embeddings, "method": _spell(selected.variant)})

    def _rule_inputs(self, selected: Selected) -> dict[str, str]:
        assert selected.rule is not None
        inputs = {"rule": _spell(selected.rule)}
        user = self.user_rules.get(selected.method.rule or "")
        return inputs if user is None else {**inputs, "rule_source": user.digest}

    def _embedding_inputs(self) -> dict[str, str]:
        prompts = self.manifest.prompts
        return {"embeddings": prompts.embeddings, "curve_tolerance": str(prompts.curve_tolerance)}

    def _source_inputs(self) -> dict[str, str]:
        # The order counts too: weights per source are stored in it.
        return {**self.models.as_inputs(), "sources": ", ".join(self.sources)}

    def _model_inputs(self, name: str, archive: Archive) -> dict[str, str]:
        prompts = self.manifest.prompts
        text = {"prompts": digest_json(prompts.templates), "text_tower": prompts.text_tower}
        return {
            **self._source_inputs(),
            **{f"numeric_kind.{part}": value for part, value in self.kind.items()},
            "class_names": digest_json(self.class_names(name, archive)),
            **(text if self.models.has_text else {}),
        }


def archive_path(manifest: Manifest, name: str) -> Path:
    """Folder of an evaluation set's archive."""
    return Path(manifest.archives) / name


def _spell(variant: Variant) -> str:
    return json.dumps({"name": variant.name, **variant.settings}, sort_keys=True)
