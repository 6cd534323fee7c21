"""Towers compiled by torch.compile: one compilation for all weights of one architecture at one shape of input."""

import subprocess
from collections.abc import Callable
from importlib import metadata

import torch
from torch import Tensor, nn

from pipeline.errors import NumericKindError, one_line
from pipeline.models.micro_batches import is_out_of_memory

# Sizes of inputs that one process may compile an architecture for.
SHAPES = 64


class CompiledTowers:
    """Runs towers compiled. Their parameters are inputs of what is compiled: all ends and merged towers share it."""

    def __init__(self) -> None:
        # Not at the top: it takes seconds, which whoever compiles nothing need not wait.
        from torch._dynamo import config as dynamo
        from torch._inductor import config as inductor

        # Every size of tile or micro-batch is a shape of its own, and torch refuses the ninth by default.
        dynamo.recompile_limit = max(dynamo.recompile_limit, SHAPES)
        # Kernels chosen by a stopwatch would be others in another worker.
        inductor.deterministic = True
        # By identity: a scorer's towers live as long as it does.
        self._compiled: dict[int, Callable[[Tensor], Tensor]] = {}

    def __call__(self, tower: nn.Module, inputs: Tensor) -> Tensor:
        """What ``tower(inputs)`` gives, to rounding; :class:`NumericKindError` when it cannot be compiled."""
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        if id(tower) not in self._compiled:
            # One graph or an error, for torch would otherwise run what it cannot compile, or has compiled too often,
            # as it is: another numeric kind.
            self._compiled[id(tower)] = torch.compile(tower, fullgraph=True, dynamic=False)
        try:
            return self._compiled[id(tower)](inputs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            if is_out_of_memory(error):
                raise
            raise NumericKindError(
                f"compute.compile: {type(tower).__name__} cannot be compiled ({one_line(error)}); set it to false"
            ) from error


def name_compiler(device: torch.device) -> str:
    """What compiles towers for ``device``: a C++ compiler for the CPU, Triton for CUDA; NumericKindError if absent."""
    try:
        if device.type == "cuda":
            return f"triton {metadata.version('triton')}"
        from torch._inductor.cpp_builder import get_cpp_compiler

        version = [get_cpp_compiler(), "--version"]
        return subprocess.run(version, capture_output=True, check=True, text=True).stdout.splitlines()[0]  # noqa: S603
    except (metadata.PackageNotFoundError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise NumericKindError(
            f"compute.compile: no compiler for {device.type} was found ({one_line(error)}); install it, or set it to "
            "false"
        ) from error
