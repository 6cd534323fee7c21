"""What each benchmark is to reach, and what the T³ paper reports (its Table 3, ViT-B/16): reported, never enforced."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Requirement:
    """A bound on a figure: at most (or, with ``at_least``, at least) ``bound``."""

    bound: float
    paper: float | None = None
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a figure keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    def text(self, value: float) -> str:
        """The bound, and whether ``value`` keeps it."""
        return f"{'at least' if self.at_least else 'at most'} {self.bound:g}: {'met' if self.met(value) else 'missed'}"


# Time of a method over that of one plain model on the same images.
METHOD_RATIOS = {
    "t3-batch": Requirement(1.03, paper=1.017),
    "t3-batch-online": Requirement(3.05, paper=3.0),
    "t3": Requirement(2.2, paper=30),
    "t3-online": Requirement(4.3, paper=92),
}
MERGE_TO_MEMORY_PASS = Requirement(1.2)
MERGE_TO_LOOP = Requirement(1 / 25)
THREE_SOURCES = Requirement(1.3)
CURVE_LOGIT_ERROR = Requirement(1e-4)
INFER_TO_BARE_LOOP = Requirement(0.85, at_least=True)
READS_TO_DECODING = Requirement(0.7, at_least=True)
MEMORY_GROWTH = Requirement(0.15)
SWEEP_TO_INFER = Requirement(1.2)
