"""Numeric kinds: what must be equal for two workers to compute equal bytes (DESIGN rule 1)."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from pipeline.errors import NumericKindError

# How a user makes each part of the kind equal again; what is absent here cannot be set, only chosen by machine.
REMEDIES = {
    "threads": "set compute.threads to {expected}",
    "precision": "set precision to {expected}",
    "tile": "set compute.tile to {expected}",
    "device": "run on the same kind of device",
    "torch": "install the same torch version",
}


@dataclass(frozen=True, slots=True)
class NumericKind:
    """Device, instruction set, torch version, precision, threads and tile: recorded with every result."""

    device: str
    instruction_set: str
    torch: str
    precision: str
    threads: str
    tile: str

    def as_inputs(self) -> dict[str, str]:
        """The parts by name, for fingerprints and records."""
        return asdict(self)


def choose_device(setting: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; :class:`NumericKindError` for an absent device."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if setting == "cuda" and not torch.cuda.is_available():
        raise NumericKindError("compute.device is cuda, but this worker sees no CUDA device; set it to auto or cpu")
    return torch.device(setting)


def measure_numeric_kind(device: torch.device, *, precision: str, tile: int) -> NumericKind:
    """Numeric kind of this process as it is now, with the threads that torch really uses."""
    if device.type == "cuda":
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        described, instructions = f"cuda {name}", f"sm_{capability[0]}{capability[1]}"
    else:
        described, instructions = "cpu", f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return NumericKind(
        device=described,
        instruction_set=instructions,
        torch=str(torch.__version__),
        precision=precision,
        threads=str(torch.get_num_threads()),
        tile=str(tile),
    )


def require_kind(actual: NumericKind, expected: Mapping[str, str], where: str) -> None:
    """Raise :class:`NumericKindError` naming each part in which ``actual`` differs from the run's ``expected`` kind."""
    found = actual.as_inputs()
    differing = [name for name in found if found[name] != expected.get(name)]
    if differing:
        parts = ", ".join(f"{name} is {found[name]} and the run's is {expected.get(name)}" for name in differing)
        remedy = REMEDIES.get(differing[0], "use a machine like the run's").format(expected=expected.get(differing[0]))
        raise NumericKindError(f"{where}: numeric kind differs: {parts}; {remedy}, or give another 'output'")


def kind_for_settings(device: str, *, precision: str, threads: int, tile: int) -> NumericKind:
    """Set this process's threads as a worker would, and measure the numeric kind that it then has."""
    torch.set_num_threads(threads)
    return measure_numeric_kind(choose_device(device), precision=precision, tile=tile)
