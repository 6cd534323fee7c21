"""How far apart two models are in weight space: relative distance and angle, by tensor, layer and component.

Every figure is derived from four float64 sums, ‖a‖², ‖b‖², ‖a-b‖² and a·b, which add up over tensors: a layer's
distance is that of its tensors as one vector, not a mean of ratios.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.merging.segment import State

ENCODER, HEAD = "encoder", "head"
IMAGE_SIDE = "visual."

# Names that torch gives to a module's own tensors; anything else (class_embedding, proj, ...) is a layer of its own.
TENSOR_OF_MODULE = re.compile(r"\w*(weight|bias)|running_mean|running_var")


@dataclass(frozen=True, slots=True)
class Distance:
    """What separates two vectors of weights, ``a`` (the reference) and ``b``, with the sums it follows from.

    ``name`` is the key of a tensor, the name of a layer or a component; ``component`` is ``encoder`` or ``head``.
    """

    name: str
    component: str
    elements: int
    reference_squared: float
    other_squared: float
    difference_squared: float
    dot: float

    @property
    def relative(self) -> float:
        """Relative distance ‖a-b‖/‖a‖; 0 for equal vectors and infinite where only ``a`` is zero."""
        if self.difference_squared == 0:
            return 0.0
        return math.sqrt(self.difference_squared / self.reference_squared) if self.reference_squared else math.inf

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between ``a`` and ``b`` in [-1, 1]; None where one of them is zero."""
        norms = math.sqrt(self.reference_squared) * math.sqrt(self.other_squared)
        return min(1.0, max(-1.0, self.dot / norms)) if norms else None

    @property
    def angle(self) -> float | None:
        """Angle between ``a`` and ``b`` in degrees, in [0, 180]; None where one of them is zero.

        Small angles between vectors of similar length follow from the triangle's three sides, which resolves them where
        the arc cosine loses all below 1e-6 degrees.
        """
        cosine = self.cosine
        if cosine is None:
            return None
        a, b, side = (math.sqrt(x) for x in (self.reference_squared, self.other_squared, self.difference_squared))
        if self.difference_squared >= a * b:
            return math.degrees(math.acos(cosine))
        difference = abs(a - b)
        return math.degrees(2 * math.asin(math.sqrt(max(0.0, (side - difference) * (side + difference)) / (4 * a * b))))


def distances(first: State, second: State) -> list[Distance]:
    """Distance of every floating-point tensor of ``second`` from that of ``first``, in the order of the keys.

    Both have the same keys and shapes, which the caller has checked.
    """
    assert first.keys() == second.keys()
    return [_distance(key, value, second[key]) for key, value in first.items() if value.is_floating_point()]


def layer_of(key: str) -> str:
    """Layer of a state dict's key in open_clip's or timm's layout.

    Numbered blocks are one layer each: the key up to its first numeric component (``visual.transformer.resblocks.3``).
    Elsewhere the tensors of one module are a layer (``visual.conv1``), and a parameter of a tower itself is one
    (``visual.class_embedding``).
    """
    parts = key.split(".")
    for position, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: position + 1])
    return ".".join(parts[:-1] if len(parts) > 1 and TENSOR_OF_MODULE.fullmatch(parts[-1]) else parts)


def component_of(key: str) -> str:
    """``encoder`` for the image side, else ``head``: CLIP's text tower and logit scale, a classifier's last layer."""
    return ENCODER if key.startswith(IMAGE_SIDE) else HEAD


def by_layer(tensors: Iterable[Distance]) -> list[Distance]:
    """Distances of whole layers (:func:`layer_of`), in the order in which each first occurs."""
    return _aggregated(tensors, lambda row: layer_of(row.name))


def by_component(tensors: Iterable[Distance]) -> list[Distance]:
    """Distances of encoder and head as a whole, in this order."""
    return sorted(_aggregated(tensors, lambda row: row.component), key=lambda row: row.name != ENCODER)


def _distance(key: str, reference: Tensor, other: Tensor) -> Distance:
    assert reference.shape == other.shape
    a, b = reference.double(), other.double()
    return Distance(
        name=key,
        component=component_of(key),
        elements=a.numel(),
        reference_squared=float((a * a).sum()),
        other_squared=float((b * b).sum()),
        difference_squared=float((a - b).square_().sum()),
        dot=float((a * b).sum()),
    )


def _aggregated(rows: Iterable[Distance], group_of: Callable[[Distance], str]) -> list[Distance]:
    groups: dict[tuple[str, str], list[Distance]] = {}
    for row in rows:
        groups.setdefault((row.component, group_of(row)), []).append(row)
    return [_total(name, component, members) for (component, name), members in groups.items()]


def _total(name: str, component: str, rows: Sequence[Distance]) -> Distance:
    return Distance(
        name=name,
        component=component,
        elements=sum(row.elements for row in rows),
        reference_squared=math.fsum(row.reference_squared for row in rows),
        other_squared=math.fsum(row.other_squared for row in rows),
        difference_squared=math.fsum(row.difference_squared for row in rows),
        dot=math.fsum(row.dot for row in rows),
    )
