"""The command line: parse, call one function, print. What a command does is in :mod:`pipeline.drivers`."""

import sys

import typer

from pipeline.cli import benchmarks, results, runs
from pipeline.errors import PipelineError

INTERRUPTED = 130
HELP = "Test-time merging of medical vision-language models: precompute λ once, then infer at the price of one model."

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)
app.add_typer(runs.app)
app.add_typer(results.app)
app.add_typer(benchmarks.app, name="bench")


def main() -> None:
    """Run the command line; a user's mistake is printed as one line per problem and ends with its exit code."""
    try:
        app()
    except PipelineError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as end:
        # Typer turns an interrupt into this exit code, and says nothing.
        if end.code == INTERRUPTED:
            print("interrupted: what was committed is kept; run the same command again", file=sys.stderr)
        raise
