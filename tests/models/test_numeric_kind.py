import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch._inductor import config as inductor

from pipeline.errors import NumericKindError
from pipeline.models.compiled import name_compiler
from pipeline.models.numeric_kind import NumericKind, choose_device, kind_for_settings, require_kind

KIND = NumericKind("cpu", "x86_64 AVX2", "2.9.0", "fp32", "1", "32")


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_matrices_are_multiplied_in_full_precision_whatever_the_environment_says() -> None:
    script = (
        "import torch; from pipeline.models.numeric_kind import kind_for_settings as kind; "
        "flags = lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32); before = flags(); "
        "kind('cpu', precision='fp32', threads=1, tile=4); print(before, flags())"
    )
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(True, True) (False, False)"


def test_an_equal_kind_is_accepted() -> None:
    require_kind(KIND, replace(KIND).as_inputs(), where="worker")


@pytest.mark.parametrize(
    ("part", "value", "remedy"),
    [
        ("threads", "2", "set compute.threads to 1"),
        ("precision", "bf16", "set precision to fp32"),
        ("tile", "16", "set compute.tile to 32"),
        ("device", "cuda NVIDIA H200", "run on the same kind of device"),
        ("torch", "2.8.0", "install the same torch version"),
        ("memory_format", "channels_last", "set compute.memory_format to contiguous"),
        ("compile", "g++ 12", "set compute.compile as the run has it"),
        ("instruction_set", "x86_64 AVX512", "use a machine like the run's"),
    ],
)
def test_another_kind_is_refused_by_name_and_with_a_remedy(part: str, value: str, remedy: str) -> None:
    other = replace(KIND, **{part: value})
    with pytest.raises(NumericKindError) as caught:
        require_kind(other, KIND.as_inputs(), where="worker")
    expected = getattr(KIND, part)
    message = f"worker: numeric kind differs: {part} is {value} and the run's is {expected}; {remedy}"
    assert str(caught.value).startswith(message)
    assert "another 'output'" in str(caught.value)


def test_a_kind_without_options_is_recorded_as_it_was_before_there_were_any() -> None:
    assert set(KIND.as_inputs()) == {"device", "instruction_set", "torch", "precision", "threads", "tile"}
    options = replace(KIND, memory_format="channels_last", compile="g++ 12").as_inputs()
    assert options == {**KIND.as_inputs(), "memory_format": "channels_last", "compile": "g++ 12"}


@pytest.mark.parametrize("part", ["memory_format", "compile"])
def test_a_run_with_an_option_refuses_a_worker_without(part: str) -> None:
    recorded = replace(KIND, **{part: "other"}).as_inputs()
    with pytest.raises(NumericKindError, match=f"{part} is {getattr(KIND, part)} and the run's is other"):
        require_kind(KIND, recorded, where="worker")


def test_every_part_that_differs_is_named() -> None:
    with pytest.raises(NumericKindError, match=r"threads is 4 and the run's is 1, tile is 8 and the run's is 32"):
        require_kind(replace(KIND, threads="4", tile="8"), KIND.as_inputs(), where="worker")


def test_a_record_that_lacks_a_part_is_another_kind() -> None:
    recorded = {name: value for name, value in KIND.as_inputs().items() if name != "threads"}
    with pytest.raises(NumericKindError, match="threads is 1 and the run's is None"):
        require_kind(KIND, recorded, where="worker")


@pytest.mark.parametrize("count", [1, 2])
def test_the_kind_says_what_this_process_really_does(threads: int, count: int) -> None:
    kind = kind_for_settings("cpu", precision="bf16", threads=count, tile=8)
    assert torch.get_num_threads() == count
    assert (kind.threads, kind.precision, kind.tile, kind.device) == (str(count), "bf16", "8", "cpu")
    assert kind.torch == torch.__version__
    assert torch.backends.cpu.get_cpu_capability() in kind.instruction_set


def test_options_are_part_of_the_kind_and_a_compiler_is_named(threads: int) -> None:
    kind = kind_for_settings("cpu", precision="fp32", threads=1, tile=8, memory_format="channels_last", compiled=True)
    assert kind.memory_format == "channels_last"
    assert re.search(r"\d+\.\d+", kind.compile)


def test_compiling_without_a_compiler_is_refused_at_once() -> None:
    absent = inductor.patch({"cpp.cxx": ("no-such-compiler",)})
    with (
        absent,
        pytest.raises(NumericKindError, match=r"compute\.compile: no compiler for cpu was found .*set it to false"),
    ):
        name_compiler(torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device_is_refused_with_what_to_set() -> None:
    with pytest.raises(NumericKindError, match=r"compute\.device is cuda, .* set it to auto or cpu"):
        choose_device("cuda")
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
