"""The Ray Data engine: part descriptions to an actor pool; each actor commits its parts and passes on a report.

Only descriptions and reports travel through Ray, never pixels or predictions. A part that runs twice, because a node
died after its commit, is written twice with the same bytes. What a worker raises travels as a value, so that the driver
raises it as it was; what Ray raises by itself is a failure of the cluster.
"""

import logging
import os
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.engines.engine import Job
from pipeline.errors import EngineError, one_line
from pipeline.manifest.schema import Manifest
from pipeline.models.numeric_kind import kind_for_settings
from pipeline.stages.work import Report, Worker, WorkerFactory, WorkItem

try:
    import ray
    from ray import cloudpickle
    from ray._private import worker as ray_worker
    from ray.data import DataContext
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask
except ImportError as missing:
    message = "the ray engine needs Ray, which is not installed: pip install 'ray[data,default]', or use --engine local"
    raise EngineError(message) from missing

# What the tasks that hand out descriptions claim: they fit beside actors that hold all but half a CPU, and there are
# never more than a few at once. Smaller shares let Ray start a process for each of hundreds of descriptions.
READ_CPUS = 0.25
# How often an item may lose its worker (a node gone, memory run out) before the run gives up; Ray itself never does.
LOST_WORKERS = 4
ITEM_SCHEMA = pa.schema([("evaluation_set", pa.string()), ("part", pa.int64()), ("method", pa.string())])


@dataclass(frozen=True, slots=True)
class RayEngine:
    """Runs items on a pool of ``workers`` actors, on the cluster at RAY_ADDRESS or, without one, on this machine."""

    manifest: Manifest
    workers: int

    def run(self, job: Job, on_report: Callable[[Report], None]) -> None:
        """Run all items of ``job``; one block per item, so that no engine decides what belongs together."""
        if not job.items:
            return
        _connect(self.workers)
        size = min(self.workers, len(job.items))
        items = ray.data.read_datasource(_Items(job.items), override_num_blocks=len(job.items), num_cpus=READ_CPUS)
        with warnings.catch_warnings():
            # Ray 2.60 deprecates options that it has no name for yet; max_task_retries is one.
            warnings.simplefilter("ignore", DeprecationWarning)
            outcomes = items.map_batches(
                _Actor,
                fn_constructor_args=(job.make_worker,),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=size),
                max_task_retries=LOST_WORKERS - 1,
                **self._resources(job, size),
            )
        with _cluster_failures():
            for row in outcomes.iter_rows():
                on_report(_value_of(row["outcome"]))

    def numeric_kind(self) -> Mapping[str, str]:
        """Numeric kind of a worker: measured in a task on the cluster's GPUs if it has any, else here."""
        settings = self.manifest.kind_settings
        if settings["device"] == "cpu":
            return _measure_kind(settings)
        _connect(self.workers)
        if not ray.cluster_resources().get("GPU"):
            return _measure_kind(settings)
        measure = ray.remote(_outcome_of).options(num_cpus=READ_CPUS, num_gpus=1)
        with _cluster_failures():
            kind: Mapping[str, str] = _value_of(ray.get(measure.remote(_measure_kind, settings)))
        return kind

    def _resources(self, job: Job, size: int) -> dict[str, float]:
        """CPUs (and a GPU) per actor, such that the pool never claims the last bit of a CPU that reads need.

        No more than the largest node has: Ray waits for ever for a node that can hold the actor.
        """
        cluster = ray.cluster_resources()
        share = max(0.1, (cluster.get("CPU", 1.0) - 0.5) / size)
        largest = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        resources = {"num_cpus": min(float(self.manifest.compute.threads), share, largest or share)}
        if job.scores and self.manifest.compute.device != "cpu" and cluster.get("GPU"):
            resources["num_gpus"] = 1.0
        return resources


class _Actor:
    """One worker in one process; Ray gives it one block, that is one item, at a time."""

    def __init__(self, make_worker: WorkerFactory) -> None:
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        outcomes = [_outcome_of(self._run, WorkItem(**row)) for row in batch.to_pylist()]
        return pa.table({"outcome": pa.array(outcomes, pa.binary())})

    def _run(self, item: WorkItem) -> Report:
        # Made here and not in __init__: an error of a constructor reaches the driver as text only.
        self._worker = self._worker or self._make_worker()
        return self._worker.run(item)


class _Items(Datasource):  # type: ignore[misc, unused-ignore]
    """One block of one row per item: a block that Ray cannot split."""

    def __init__(self, items: Sequence[WorkItem]) -> None:
        super().__init__()
        self._blocks = [pa.Table.from_pylist([asdict(item)], ITEM_SCHEMA) for item in items]

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all descriptions."""
        return sum(block.nbytes for block in self._blocks)

    def get_read_tasks(self, parallelism: int, *_args: Any, **_kwargs: Any) -> list[ReadTask]:
        """One task per item, whatever parallelism Ray has in mind."""
        del parallelism
        return [_read_task(block) for block in self._blocks]


def _read_task(block: pa.Table) -> ReadTask:
    metadata = BlockMetadata(num_rows=1, size_bytes=block.nbytes, input_files=None, exec_stats=None)
    return ReadTask(lambda: [block], metadata)


def _outcome_of(work: Callable[..., Any], *arguments: Any) -> bytes:
    """What ``work`` returns or raises, for :func:`_value_of` in another process."""
    try:
        return bytes(cloudpickle.dumps((work(*arguments), None)))
    except Exception as error:  # noqa: BLE001 - raised again by _value_of
        trace = "".join(traceback.format_exception(error))
        error.add_note(f"raised in a worker:\n{trace}")
        try:
            outcome = bytes(cloudpickle.dumps((None, error)))
            cloudpickle.loads(outcome)
        except Exception:  # noqa: BLE001 - whatever keeps the error from travelling, its text can
            return bytes(cloudpickle.dumps((None, RuntimeError(trace))))
        return outcome


def _value_of(outcome: bytes) -> Any:
    value, error = cloudpickle.loads(outcome)
    if error is not None:
        raise error
    return value


def _connect(workers: int) -> None:
    """Join the cluster at RAY_ADDRESS, or start one here with a CPU per worker at least."""
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _require_answer(address)
    # Ray's native code writes to descriptor 2 whatever Python's logging says; a level that a user has set stands.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet = {"logging_level": logging.CRITICAL, "log_to_driver": False, "configure_logging": True}
    try:
        with _silent_stderr():
            if address:
                ray.init(**quiet)
            else:
                cpus = max(workers, len(os.sched_getaffinity(0)))
                ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        remedy = "check RAY_ADDRESS, RAY_AUTH_MODE and the cluster's token" if address else "or use --engine local"
        raise EngineError(f"ray: cannot start or join a cluster ({one_line(error)}); {remedy}") from error
    # Ray prints news of lost workers to standard output, which is for results; there is no public switch.
    ray_worker._worker_logs_enabled = False  # noqa: SLF001
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        # The context warns of deprecated settings that it makes itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _require_answer(address: str) -> None:
    """Refuse a RAY_ADDRESS (host:port) where nothing listens; Ray would try in silence for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        msg = f"RAY_ADDRESS={address}: no cluster answers there ({one_line(error)}); start one, or unset RAY_ADDRESS"
        raise EngineError(msg) from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep descriptor 2 quiet while Ray starts: its native code speaks before it reads its log level."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _cluster_failures() -> Iterator[None]:
    """Turn what Ray itself raises (a worker lost too often, a cluster gone) into one line of ours."""
    try:
        yield
    except ray.exceptions.RayError as error:
        # A failed task's message is a traceback, whose last line says what it was; other messages say it first.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[-1] if isinstance(error, ray.exceptions.RayTaskError) else lines[0]
        msg = f"ray: the job failed ({reason.strip()[:300]}); committed parts are kept, run the command again"
        raise EngineError(msg) from error


def _measure_kind(settings: Mapping[str, Any]) -> dict[str, str]:
    return kind_for_settings(**settings).as_inputs()
