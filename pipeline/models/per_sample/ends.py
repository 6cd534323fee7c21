"""One module of a tower in all of its ends: what a builder of a per-sample layer is given."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.models.per_sample.batch import BatchWeights, SampleTensor
from pipeline.models.per_sample.products import SampleLinear


class UnsupportedLayerError(TypeError):
    """A tower has a layer whose exact per-sample form is not known; it can only be merged for each sample in turn.

    Not a user's mistake: whoever asked for the per-sample tower falls back to merging and says so.
    """


@dataclass(frozen=True, slots=True)
class Ends[Module: nn.Module]:
    """The module at ``path`` in each of the K ends, and its children, which are per-sample already."""

    modules: tuple[Module, ...]
    children: Mapping[str, nn.Module]
    path: str
    batch: BatchWeights

    @property
    def first(self) -> Module:
        """The first end's module, for settings that all ends share."""
        return self.modules[0]

    def optional(self, name: str) -> list[Tensor] | None:
        """Each end's tensor ``name``, or None where the layer has none."""
        return None if getattr(self.first, name) is None else self.tensors(name)

    def tensors(self, name: str) -> list[Tensor]:
        """Each end's tensor ``name``, without which the layer's per-sample form is not known."""
        found = [getattr(module, name) for module in self.modules]
        self.require(f"has no {name}", satisfied=found[0] is not None)
        return found

    def rows(self, name: str) -> SampleTensor:
        """Each sample's own value of a small tensor."""
        return SampleTensor(self.tensors(name), self.batch)

    def optional_rows(self, name: str) -> SampleTensor | None:
        """Each sample's own value of a small tensor, or None where the layer has none."""
        return None if self.optional(name) is None else self.rows(name)

    def linear(self, weight: str, bias: str) -> SampleLinear:
        """Per-sample linear layer of two tensors by name, the second optional."""
        return SampleLinear(self.tensors(weight), self.optional(bias), self.batch)

    def require(self, otherwise: str, *, satisfied: bool) -> None:
        """Raise :class:`UnsupportedLayerError` that names this layer and what it is or does ``otherwise``."""
        if not satisfied:
            raise unsupported(self.path, self.first, otherwise)

    def rebuilt[Kind: nn.Module](self, kind: type[Kind]) -> Kind:
        """Module of ``kind``, a subclass of the layer's own, with its settings and the per-sample children.

        It has no tensors: the forward of ``kind`` gets them per sample.
        """
        # The layer's own constructor would make tensors of its own, and is not told all of the settings.
        module = kind.__new__(kind)
        module.__dict__.update(vars(self.first))
        module.__dict__["_modules"] = dict(self.children)
        for kept in ("_parameters", "_buffers"):
            absent = {name: None for name, tensor in vars(self.first)[kept].items() if tensor is None}
            module.__dict__[kept] = absent
        return module


def unsupported(path: str, module: nn.Module, reason: str) -> UnsupportedLayerError:
    """Error that names a layer by path and type."""
    kind = type(module)
    return UnsupportedLayerError(f"{path or 'the tower'} ({kind.__module__}.{kind.__qualname__}) {reason}")
