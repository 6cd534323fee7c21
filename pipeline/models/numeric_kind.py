"""Numeric kinds: what must be equal for two workers to compute equal bytes (DESIGN rule 1)."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from pipeline.errors import NumericKindError
from pipeline.models.compiled import name_compiler

# How a user makes each part of the kind equal again; what is absent here cannot be set, only chosen by machine.
REMEDIES = {
    "threads": "set compute.threads to {expected}",
    "precision": "set precision to {expected}",
    "tile": "set compute.tile to {expected}",
    "memory_format": "set compute.memory_format to {expected}",
    "compile": "set compute.compile as the run has it, and use its compiler",
    "device": "run on the same kind of device",
    "torch": "install the same torch version",
}
# Parts that came later than the first runs: at these values they are left out of records and fingerprints, and a record
# without them means these values.
DEFAULTS = {"memory_format": "contiguous", "compile": "false"}


@dataclass(frozen=True, slots=True)
class NumericKind:
    """Device, instruction set, torch version, precision, threads, tile and options: recorded with every result.

    ``compile`` is false, or names what compiled the towers, whose choices decide the last bits.
    """

    device: str
    instruction_set: str
    torch: str
    precision: str
    threads: str
    tile: str
    memory_format: str = DEFAULTS["memory_format"]
    compile: str = DEFAULTS["compile"]

    def as_inputs(self) -> dict[str, str]:
        """The parts by name, for fingerprints and records; without options that are at their defaults."""
        return {name: value for name, value in asdict(self).items() if DEFAULTS.get(name) != value}


def require_full_precision() -> None:
    """Have CUDA multiply and convolve float32 as float32, whatever the environment says.

    By default cuDNN convolves it with 10 bits of mantissa, and ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE`` has cuBLAS do so.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def choose_device(setting: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; :class:`NumericKindError` for an absent device."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if setting == "cuda" and not torch.cuda.is_available():
        raise NumericKindError("compute.device is cuda, but this worker sees no CUDA device; set it to auto or cpu")
    return torch.device(setting)


def measure_numeric_kind(
    device: torch.device,
    *,
    precision: str,
    tile: int,
    memory_format: str = DEFAULTS["memory_format"],
    compiled: bool = False,
) -> NumericKind:
    """Numeric kind of this process as it is now, with the threads that torch really uses.

    :class:`NumericKindError` when towers are to be compiled and there is no compiler.
    """
    # Divergences and probabilities are the host's work on every device.
    host = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        described, instructions = f"cuda {name}", f"sm_{capability[0]}{capability[1]} beside {host}"
    else:
        described, instructions = "cpu", host
    return NumericKind(
        device=described,
        instruction_set=instructions,
        torch=str(torch.__version__),
        precision=precision,
        threads=str(torch.get_num_threads()),
        tile=str(tile),
        memory_format=memory_format,
        compile=name_compiler(device) if compiled else DEFAULTS["compile"],
    )


def differing_parts(first: Mapping[str, str], second: Mapping[str, str]) -> list[tuple[str, str | None, str | None]]:
    """Parts of two recorded kinds that are not equal, with their value in each; None where a record lacks one."""
    one, other = ({**DEFAULTS, **kind} for kind in (first, second))
    return [(name, one.get(name), other.get(name)) for name in {**one, **other} if one.get(name) != other.get(name)]


def require_kind(actual: NumericKind, expected: Mapping[str, str], where: str) -> None:
    """Raise :class:`NumericKindError` naming each part in which ``actual`` differs from the run's ``expected`` kind."""
    differing = differing_parts(actual.as_inputs(), expected)
    if differing:
        parts = ", ".join(f"{name} is {found} and the run's is {wanted}" for name, found, wanted in differing)
        name, _, wanted = differing[0]
        remedy = REMEDIES.get(name, "use a machine like the run's").format(expected=wanted)
        raise NumericKindError(f"{where}: numeric kind differs: {parts}; {remedy}, or give another 'output'")


def kind_for_settings(
    device: str,
    *,
    precision: str,
    threads: int,
    tile: int,
    memory_format: str = DEFAULTS["memory_format"],
    compiled: bool = False,
) -> NumericKind:
    """Set this process's threads and precision as a worker would, and measure the numeric kind that it then has."""
    torch.set_num_threads(threads)
    require_full_precision()
    return measure_numeric_kind(
        choose_device(device), precision=precision, tile=tile, memory_format=memory_format, compiled=compiled
    )
