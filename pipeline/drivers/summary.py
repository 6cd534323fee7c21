"""What a command did: parts computed and skipped, samples, and the ledger of this invocation and of the whole run."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.stages.work import Report
from pipeline.store.ledger import Ledger


@dataclass(slots=True)
class Summary:
    """Counts of one invocation of a stage; ``skipped`` parts were committed before and left as they were."""

    stage: str
    run: str
    computed: int = 0
    skipped: int = 0
    samples: int = 0
    rejected: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    totals: dict[str, Any] = field(default_factory=dict)

    def count(self, report: Report) -> None:
        """Add a committed item."""
        self.computed += report.parts
        self.samples += report.samples
        self.rejected += report.rejected
        self.ledger.add(report.ledger)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: this invocation's ledger, and the ledger of everything that the run holds."""
        return {
            "stage": self.stage,
            "run": self.run,
            "parts": {"computed": self.computed, "skipped": self.skipped},
            "samples": self.samples,
            "rejected": self.rejected,
            "ledger": self.ledger.as_json(),
            "ledger_total": self.totals,
        }

    def text(self) -> str:
        """One paragraph for people."""
        counts = self.ledger.as_json()["counts"]
        calls = ", ".join(f"{model} {count:,}" for model, count in counts["image_forward_calls"].items() if count)
        lines = [
            f"{self.stage}: {self.computed:,} parts computed, {self.skipped:,} already there; "
            f"{self.samples:,} images, {self.rejected:,} rejected"
        ]
        if calls:
            lines.append(
                f"  image forward calls: {calls}; merges {counts['merges']:,}, {counts['merges_skipped']:,} skipped"
            )
        if self.ledger.micro_batch is not None:
            lines.append(
                f"  memory ran out: parts were scored in micro-batches of down to {self.ledger.micro_batch:,} images "
                "and are marked in their ledgers; their logits may differ from those of whole tiles in the last bits"
            )
        lines.append(f"  in {self.run}")
        return "\n".join(lines)


def sum_ledgers(folder: Path, *stages: str) -> Ledger:
    """Sum of the ledgers of all parts of ``stages``, over all evaluation sets, below ``folder``."""
    total = Ledger()
    for stage in stages:
        for path in sorted((folder / stage).glob("*/part-*.json")):
            total.add(Ledger.from_json(json.loads(path.read_text(encoding="utf-8"))))
    return total
