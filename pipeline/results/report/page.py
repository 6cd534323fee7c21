"""The report of a run: one self-contained HTML page that opens with the answer and ends with its provenance."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.coefficients.evidence import GENERALIST
from pipeline.results.layout import conditions, folder_names, parts, read_run, settings, sort_methods
from pipeline.results.ledger import cost_text, ledger_rows, model_names
from pipeline.results.metrics import evaluate_run
from pipeline.results.report.histograms import branch_class, describe, lambda_counts, lambda_histogram
from pipeline.results.summary import find_answer, method_means
from pipeline.results.tables import decimal, percent, whole
from pipeline.store.files import write_text

TEMPLATE = "page.html"
T3_DEFAULT = "t3"
"""Folder name of T³ at its default settings (γ=1); any other setting has a suffix."""

LEGEND = {
    "none": "left as it was",
    "expert-confident": "raised: the expert is confident",
    "generalist-confident": "lowered: the generalist is confident",
}


@dataclass(frozen=True, slots=True)
class Histogram:
    """One figure of λ: its SVG is our own markup, ``description`` says in words what it shows."""

    evaluation_set: str
    samples: int
    branches: tuple[str, ...]
    description: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class ResultGroup:
    """The rows of one evaluation set."""

    name: str
    condition: str | None
    best: float | None
    rows: list[dict[str, Any]]


def write_report(run: Path) -> Path:
    """Evaluate ``run`` and write ``RUN/report/index.html``; equal runs give equal bytes. Returns the page's path.

    Raises :class:`~pipeline.errors.RunDirectoryError` as :func:`~pipeline.results.metrics.evaluate_run` does.
    """
    run_json = read_run(run)
    path = run / "report" / "index.html"
    write_text(path, render_report(run, run_json, evaluate_run(run)))
    return path


def render_report(run: Path, run_json: Mapping[str, Any], frame: pl.DataFrame) -> str:
    """Render the page for the metrics ``frame`` of a run; everything that users named is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "decimal": decimal,
        "whole": whole,
        "cost": cost_text,
        "pretty": _pretty,
    }
    manifest = run_json["manifest"]
    means = method_means(frame)
    ledger = ledger_rows(run_json)
    rules = {rule: _histograms(run, rule, dict(run_json)) for rule in folder_names(run / "coefficients")}
    page = environment.get_template(TEMPLATE).render(
        name=manifest.get("name", run.name),
        state=run_json.get("state"),
        answer=find_answer(frame),
        generalist=GENERALIST,
        means=means,
        conditions=list(dict.fromkeys(name for row in means for name in row.by_condition)),
        costs={row.method: row for row in ledger if row.method},
        groups=_groups(frame),
        not_scored=_not_scored(dict(run_json), frame),
        rules={rule: figures for rule, figures in rules.items() if figures},
        legend=_legend(rules),
        t3_default=T3_DEFAULT,
        ledger=ledger,
        ledger_models=[model for model in model_names(ledger) if any(row.image_calls.get(model) for row in ledger)],
        labels=dict(zip(frame["method"], frame["label"], strict=True)),
        analysis_only=set(frame.filter(pl.col("analysis_only"))["method"]),
        settings=_all_settings(run),
        fingerprints=run_json.get("fingerprints", {}),
        versions=run_json.get("versions", {}),
        seeds=run_json.get("seeds", {}),
        numeric_kind=run_json.get("numeric_kind", {}),
        class_names=run_json.get("class_names", {}),
        frame=frame.to_dicts(),
        manifest=manifest,
    )
    return page.rstrip() + "\n"


def _histograms(run: Path, rule: str, run_json: dict[str, Any]) -> list[Histogram]:
    root = run / "coefficients" / rule
    listed = list(conditions(run_json))
    names = sorted(folder_names(root), key=lambda name: (listed.index(name) if name in listed else len(listed), name))
    figures: list[Histogram] = []
    for name in names:
        folder = root / name / "samples"
        if parts(folder):
            counts = lambda_counts(folder)
            samples = sum(int(found.sum()) for found in counts.values())
            svg = Markup(lambda_histogram({rule: counts}, f"{_slug(rule)}-{len(figures)}"))  # noqa: S704 - markup of our own
            figures.append(Histogram(name, samples, tuple(counts), describe(counts), svg))
    return figures


def _legend(rules: Mapping[str, list[Histogram]]) -> dict[str, str]:
    """Colours that the figures use, by the name of the CSS variable, with what each means."""
    used = {branch for figures in rules.values() for figure in figures for branch in figure.branches}
    known = {branch: text for branch, text in LEGEND.items() if branch in used}
    others = sorted(used - LEGEND.keys())
    return known | ({branch_class(others[0]): ", ".join(others)} if others else {})


def _groups(frame: pl.DataFrame) -> list[ResultGroup]:
    groups: list[ResultGroup] = []
    for (name, condition), rows in frame.group_by("evaluation_set", "condition", maintain_order=True):
        best = rows.filter(~pl.col("analysis_only"))["accuracy"].max()
        groups.append(
            ResultGroup(
                name=str(name),
                condition=None if condition is None else str(condition),
                best=best if isinstance(best, float) else None,
                rows=rows.to_dicts(),
            )
        )
    return groups


def _not_scored(run_json: dict[str, Any], frame: pl.DataFrame) -> list[str]:
    """Evaluation sets and methods of the manifest that have no predictions yet."""
    scored_sets = set(frame["evaluation_set"])
    scored_methods = {name.split("@")[0] for name in frame["method"]} | set(frame["method"])
    methods = sort_methods(map(str, run_json["manifest"].get("methods", [])), run_json)
    absent = [f"evaluation set {name}" for name in conditions(run_json) if name not in scored_sets]
    return absent + [f"method {name}" for name in methods if name not in scored_methods]


def _all_settings(run: Path) -> dict[str, Any]:
    """Settings written beside the folders of rules and methods, by ``rule <name>`` or ``method <name>``."""
    found = {
        f"{kind} {name}": settings(run / root / name)
        for kind, root in (("rule", "coefficients"), ("method", "predictions"))
        for name in folder_names(run / root)
    }
    return {name: value for name, value in found.items() if value is not None}


def _slug(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)


def _pretty(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
