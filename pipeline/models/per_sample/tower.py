"""The exact per-sample forward of an image tower: each image by its own weights, all in one batched forward.

Shapes: N images, H×W pixels, D feature width, K ends.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.models.per_sample.batch import BatchWeights, is_shared
from pipeline.models.per_sample.ends import Ends, unsupported
from pipeline.models.per_sample.known_layers import KNOWN_FORWARDS, KNOWN_LAYERS, KnownLayer, is_parameterless


class PerSampleTower:
    """K image towers of one architecture, run as θ(w) = Σ w_k·θ_k with another w for each image.

    Equal to merging for each image in turn, to rounding; a row's bits do not depend on the other rows. A layer whose
    tensors are equal in all ends costs one plain call.

    Parameters
    ----------
    ends
        The towers, in evaluation mode (``Segment.ends``). Their parameters are used where they lie and may not change.

    Raises
    ------
    UnsupportedLayerError
        A layer's per-sample form is not known; the message has its path and type.
    ValueError
        The ends differ in their layers, or are in training mode.
    """

    def __init__(self, ends: Sequence[nn.Module]) -> None:
        self._batch = BatchWeights(len(ends))
        self._device = next(ends[0].parameters()).device
        self._tower = _per_sample(tuple(ends), "", self._batch)

    @torch.inference_mode()
    def __call__(self, images_NCHW: Tensor, weights_NK: Tensor) -> Tensor:
        """Features [N, D] of normalised images [N, 3, H, W], each by its own weights over the K ends.

        ValueError for weights that are not N rows of K numbers >= 0 that sum to 1. Not reentrant: one call at a time.
        """
        if len(weights_NK) != len(images_NCHW):
            msg = f"'weights' must have a row for each of the {len(images_NCHW)} images, got {len(weights_NK)}"
            raise ValueError(msg)
        self._batch.set(weights_NK, self._device)
        features: Tensor = self._tower(images_NCHW)
        return features


def _per_sample(modules: tuple[nn.Module, ...], path: str, batch: BatchWeights) -> nn.Module:
    """Per-sample form of one module, by its K ends; the first end's own module where all are equal."""
    first = modules[0]
    _require_alike(modules, path)
    _require_untouched(first, path)
    known = _look_up(first, path)
    children = {
        name: _per_sample(tuple(module.get_submodule(name) for module in modules), f"{path}.{name}".lstrip("."), batch)
        for name, _ in first.named_children()
    }
    if known is None or _equal(modules):
        return first
    return known.build(Ends(modules, children, path, batch))


def _look_up(module: nn.Module, path: str) -> KnownLayer | None:
    """The table's entry, or None for a module that has no tensors and needs none."""
    own = {name for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]}
    known = KNOWN_LAYERS.get(type(module))
    if known is None:
        if own or not is_parameterless(module):
            raise unsupported(path, module, "is not a layer whose per-sample form is known")
        return None
    if unknown := sorted(own - known.tensors):
        raise unsupported(path, module, f"has tensors whose part in its forward is not known: {', '.join(unknown)}")
    return known


def _require_alike(modules: tuple[nn.Module, ...], path: str) -> None:
    """ValueError unless the modules of all ends are of one class, with the same settings, children and shapes."""
    if any(_description(module) != _description(modules[0]) for module in modules[1:]):
        msg = f"ends must be of one architecture, but differ at {path or 'the tower itself'}"
        raise ValueError(msg)
    if any(module.training for module in modules):
        raise ValueError("ends must be in evaluation mode")


def _description(module: nn.Module) -> tuple[object, ...]:
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    children = [name for name, _ in module.named_children()]
    shapes = [(name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in tensors]
    return type(module), module.extra_repr(), children, shapes


def _require_untouched(module: nn.Module, path: str) -> None:
    """Refuse an object whose class is known but which was changed itself."""
    if shadowed := sorted(name for name in vars(module) if callable(getattr(type(module), name, None))):
        raise unsupported(path, module, f"has methods of its own: {', '.join(shadowed)}")
    if KNOWN_FORWARDS.get(type(module), type(module).forward) is not type(module).forward:
        raise unsupported(path, module, "has had its class's forward replaced")
    if vars(module)["_forward_hooks"] or vars(module)["_forward_pre_hooks"]:
        raise unsupported(path, module, "has forward hooks")


def _equal(modules: tuple[nn.Module, ...]) -> bool:
    states = [[*module.parameters(), *module.buffers()] for module in modules]
    return all(is_shared(tensors) for tensors in zip(*states, strict=True))
