"""The Ray Data engine: part descriptions to an actor pool; each actor commits its parts and passes on a report.

Only descriptions and reports travel through Ray, never pixels or predictions. A part that runs twice, because a node
died after its commit, is written twice with the same bytes.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.engines.engine import Job
from pipeline.errors import EngineError, PipelineError, one_line
from pipeline.manifest.schema import Manifest
from pipeline.models.numeric_kind import kind_for_settings
from pipeline.stages.work import Report, Worker, WorkerFactory, WorkItem
from pipeline.store.ledger import Ledger

try:
    import ray
    from ray.data import DataContext
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask
except ImportError as missing:
    message = "the ray engine needs Ray, which is not installed: pip install 'ray[data,default]', or use --engine local"
    raise EngineError(message) from missing

# What the tasks that hand out descriptions may claim: almost nothing, so that actors holding every CPU starve no one.
READ_CPUS = 0.01
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
        dataset = ray.data.read_datasource(
            _Items(job.items), override_num_blocks=len(job.items), ray_remote_args={"num_cpus": READ_CPUS}
        ).map_batches(
            _Actor,
            fn_constructor_args=(job.make_worker,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=size),
            **self._resources(job, size),
        )
        try:
            for row in dataset.iter_rows():
                on_report(_report_from_row(row))
        except ray.exceptions.RayError as error:
            raise _own_error(error) from error

    def numeric_kind(self) -> Mapping[str, str]:
        """Numeric kind of a worker: measured in a task on the cluster's GPUs if it has any, else here."""
        compute = self.manifest.compute
        settings = (compute.device, self.manifest.pair.precision, compute.threads, compute.tile)
        if compute.device == "cpu":
            return _measure_kind(*settings)
        _connect(self.workers)
        if not ray.cluster_resources().get("GPU"):
            return _measure_kind(*settings)
        measure = ray.remote(_measure_kind).options(num_cpus=READ_CPUS, num_gpus=1)
        kind: Mapping[str, str] = ray.get(measure.remote(*settings))
        return kind

    def _resources(self, job: Job, size: int) -> dict[str, float]:
        """CPUs (and a GPU) per actor, such that the pool never claims the last bit of a CPU that reads need."""
        cluster = ray.cluster_resources()
        share = max(0.1, (cluster.get("CPU", 1.0) - 0.5) / size)
        resources = {"num_cpus": min(float(self.manifest.compute.threads), share)}
        if job.scores and self.manifest.compute.device != "cpu" and cluster.get("GPU"):
            resources["num_gpus"] = 1.0
        return resources


class _Actor:
    """One worker in one process; Ray gives it one block, that is one item, at a time."""

    def __init__(self, make_worker: WorkerFactory) -> None:
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        # Made here and not in __init__: an error of a constructor reaches the driver as text only.
        self._worker = self._worker or self._make_worker()
        return pa.Table.from_pylist([_row_of(self._worker.run(WorkItem(**row))) for row in batch.to_pylist()])


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


def _row_of(report: Report) -> dict[str, Any]:
    return {
        **asdict(report.item),
        "samples": report.samples,
        "rejected": report.rejected,
        "ledger": json.dumps(report.ledger.as_json()),
    }


def _report_from_row(row: Mapping[str, Any]) -> Report:
    item = WorkItem(**{name: row[name] for name in ITEM_SCHEMA.names})
    return Report(item, row["samples"], row["rejected"], Ledger.from_json(json.loads(row["ledger"])))


def _connect(workers: int) -> None:
    """Join the cluster at RAY_ADDRESS, or start one here with a CPU per worker at least."""
    if ray.is_initialized():
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            cpus = max(workers, len(os.sched_getaffinity(0)))
            ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineError(f"ray: cannot start or join a cluster ({one_line(error)}); check RAY_ADDRESS") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _measure_kind(device: str, precision: str, threads: int, tile: int) -> dict[str, str]:
    return kind_for_settings(device, precision=precision, threads=threads, tile=tile).as_inputs()


def _own_error(error: BaseException) -> PipelineError:
    """The error that a worker raised, out of the layers that Ray wraps around it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PipelineError):
            return seen
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) and cause is not seen else seen.__cause__
    return EngineError(f"ray: the job failed ({one_line(error)}); committed parts are kept, run the command again")
