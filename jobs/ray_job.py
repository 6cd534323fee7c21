"""Submit a run through the Ray Jobs API, follow its log, and end with the exit code of the job itself.

Called by ``ray-job.sh``. `ray job submit` ends every failed job with 1; the Jobs API knows how the job's command ended,
and 2 (a mistake in the manifest, say) must stay 2.
"""

import argparse
import asyncio
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

try:
    import aiohttp
    from ray.exceptions import RayError
    from ray.job_submission import JobStatus, JobSubmissionClient
except ImportError as missing:
    sys.exit(f"error: {sys.executable} cannot submit Ray jobs ({missing}); install the pipeline in this environment")

POLL_SECONDS = 2.0
# How long the head may be out of reach before this command gives up on a job that may well be running.
PATIENCE_SECONDS = 300.0
FAILURES = (RayError, RuntimeError, OSError, aiohttp.ClientError)
PRINT_RUN = (
    "import sys; from pathlib import Path; from pipeline.manifest import load_manifest; "
    "root = Path(sys.argv[2]) if sys.argv[2:] else None; "
    "print(load_manifest(Path(sys.argv[1]), data_root=root).output)"
)


class Parser(argparse.ArgumentParser):
    """Prints a mistake as one line, like every other command of the project."""

    def error(self, message: str) -> NoReturn:
        """Print ``message`` and exit with 2."""
        fail(f"{message}; see jobs/ray-job.sh --help")


def main(arguments: Sequence[str]) -> int:
    """Submit, follow, and return the job's exit code."""
    parser = Parser(prog="ray-job.sh", add_help=False, allow_abbrev=False)
    parser.add_argument("address")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--allow-code", action="store_true")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    try:
        client = JobSubmissionClient(options.address)
        job = client.submit_job(entrypoint=entrypoint(options))
    except FAILURES as error:
        fail(f"{options.address}: {first_line(error)}; check the address, RAY_AUTH_MODE and the cluster's token")
    print(f"job {job} is submitted to {options.address}", flush=True)
    try:
        details = follow(client, job)
    except KeyboardInterrupt:
        say(f"interrupted: job {job} goes on; `ray job logs --follow {job}` shows it, `ray job stop {job}` ends it")
        return 130
    return exit_code(job, details)


def entrypoint(options: argparse.Namespace) -> str:
    """Shell command of the job: it stops at the first stage that fails, and ends with that stage's exit code."""
    manifest = str(options.manifest)
    output = [] if options.output is None else ["--output", str(options.output.resolve())]
    root = [] if options.data_root is None else ["--data-root", str(options.data_root.resolve())]
    workers = [] if options.workers is None else ["--workers", str(options.workers)]
    methods = [word for name in options.method for word in ("--method", name)]
    code = ["--allow-code"] if options.allow_code else []
    common = [manifest, *workers, *output, *root, *code]
    if output:
        run = shlex.quote(output[1])
    else:
        printed = shlex.join(["-c", PRINT_RUN, manifest, *root[1:]])
        run = f'"$("$(dirname "$(command -v pipeline)")/python" {printed})"'
    commands = (
        shlex.join(["pipeline", "precompute", *common]),
        shlex.join(["pipeline", "infer", *common, *methods]),
        f"pipeline evaluate {run}",
    )
    return " && ".join(commands)


def follow(client: JobSubmissionClient, job: str) -> Any:
    """Print the job's log until it ends; return its details. A lost connection is waited for, up to a limit."""
    try:
        asyncio.run(print_log(client, job))
    except FAILURES as error:
        say(f"the log broke off ({first_line(error)}); waiting for job {job}")
    last_seen = time.monotonic()
    while True:
        try:
            details = client.get_job_info(job)
            if details.status.is_terminal():
                return details
            last_seen = time.monotonic()
        except FAILURES as error:
            if time.monotonic() - last_seen > PATIENCE_SECONDS:
                fail(f"job {job}: its cluster is out of reach ({first_line(error)}); submit again to go on", code=1)
        time.sleep(POLL_SECONDS)


async def print_log(client: JobSubmissionClient, job: str) -> None:
    """Print the job's output as it comes, standard error included."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def exit_code(job: str, details: Any) -> int:
    """Say how the job ended; its command's exit code, 128 + n after signal n, 1 where there is none."""
    if details.status == JobStatus.SUCCEEDED:
        print(f"job {job} succeeded")
        return 0
    code = details.driver_exit_code
    if not code:
        say(f"error: job {job} ended as {details.status}: {(details.message or 'no reason given').splitlines()[0]}")
        return 1
    say(f"job {job} ended with exit code {code}; what it committed is kept, submit again to go on")
    return int(code) if code > 0 else 128 - int(code)


def first_line(error: BaseException) -> str:
    """First line of a library's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def say(text: str) -> None:
    """Print one line on standard error."""
    print(text, file=sys.stderr, flush=True)


def fail(text: str, code: int = 2) -> NoReturn:
    """Print one line on standard error and exit."""
    say(f"error: {text}")
    sys.exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
