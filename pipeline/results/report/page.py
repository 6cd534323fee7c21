"""Writes the report: one HTML page that needs nothing from outside, the data of its tables and figures beside it."""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.errors import RunDirectoryError
from pipeline.results.report.content import Content, gallery_frame, gather
from pipeline.results.report.drawing import stylesheet
from pipeline.results.report.exports import FORMATS
from pipeline.results.report.table import as_frame, interval_text, p_text, ranked_rows, sign_of, value_text
from pipeline.store.files import write_text
from pipeline.store.fingerprints import Fingerprint, digest_json
from pipeline.store.tables import write_table

TEMPLATE = "page.html"
PAGE, DATA, TABLES = "index.html", "data", "tables"


def write_report(*runs: Path, output: Path | None = None, benchmarks: Path | None = None) -> Path:
    """Evaluate ``runs`` and write one page about them; equal runs give equal bytes. Returns the page's path.

    One run is reported in ``RUN/report``, several in ``report`` beside them, or either in ``output``. The data of
    every table and figure lies in ``data/<id>.parquet`` beside the page. Raises :class:`RunDirectoryError` when several
    runs share no folder, when ``benchmarks`` is no folder of `pipeline bench`, and as
    :func:`~pipeline.results.studies.combine` does.
    """
    folder = _folder(runs, output)
    content = gather(runs, benchmarks=benchmarks)
    fingerprint = _fingerprint(content)
    frames = {table.id: as_frame(table) for table in content.tables}
    frames |= {figure.id: figure.data for figure in content.figures}
    frames |= {chapter.id: gallery_frame(chapter.gallery) for chapter in content.chapters if chapter.gallery}
    for name, frame in frames.items():
        write_table(folder / DATA / f"{name}.parquet", frame.to_arrow(), fingerprint)
    write_text(folder / PAGE, render(content))
    return folder / PAGE


def export_tables(*runs: Path, kind: Literal["latex", "csv", "json"], output: Path | None = None) -> list[Path]:
    """Write every table of the report as a file ``tables/<id>`` where its page would lie; returns the paths."""
    folder = _folder(runs, output)
    content = gather(runs, figures=False)
    suffix, write = FORMATS[kind]
    paths = []
    for table in content.tables:
        paths.append(folder / TABLES / f"{table.id}.{suffix}")
        write_text(paths[-1], write(table, content.symbols))
    return paths


def render(content: Content) -> str:
    """Render the page; everything that users named is escaped, the figures are markup of our own."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions: dict[str, Callable[..., Any]] = {
        "ranked_rows": ranked_rows,
        "value_text": value_text,
        "interval_text": interval_text,
        "p_text": p_text,
        "sign_of": sign_of,
        "pretty": _pretty,
        "markup": Markup,
    }
    environment.globals |= functions
    environment.filters["prose"] = _prose
    page = environment.get_template(TEMPLATE).render(
        content=content,
        data=DATA,
        figure_styles=Markup(stylesheet()),  # noqa: S704 - styles of our own
    )
    return page.rstrip() + "\n"


def _folder(runs: Sequence[Path], output: Path | None) -> Path:
    if output is not None:
        return output
    if len(runs) == 1:
        return runs[0] / "report"
    common = Path(os.path.commonpath([run.resolve().parent for run in runs]))
    if common == Path(common.anchor):
        raise RunDirectoryError(f"{', '.join(map(str, runs))}: share no folder for one report; give --output")
    return common / "report"


def _fingerprint(content: Content) -> Fingerprint:
    """What the data beside the page depends on: the predictions of every run."""
    return Fingerprint({f"run {index}": digest_json(run.fingerprints) for index, run in enumerate(content.provenance)})


def _prose(text: str) -> Markup:
    """Escape a sentence, keep figures and their units on one line, and set what stands in backticks as code."""
    kept = re.sub(r"(?<=\d) (?=%|B\b|points\b)", "\u00a0", str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", kept))  # noqa: S704 - escaped above


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
