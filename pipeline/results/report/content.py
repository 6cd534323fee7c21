"""Everything a report is made of, gathered from the rooms that compute it: the one place that knows them all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.results.layout import read_run
from pipeline.results.marks import MARKS, Mark
from pipeline.results.report.answer import Answer, find_answer
from pipeline.results.report.benchmarks import benchmark_figures
from pipeline.results.report.comparison_tables import comparison_tables
from pipeline.results.report.cost_tables import costs_table
from pipeline.results.report.costs import cost_figures
from pipeline.results.report.dataset_tables import dataset_tables
from pipeline.results.report.differences import difference_figures
from pipeline.results.report.divergence import divergence_figures
from pipeline.results.report.figure import Figure
from pipeline.results.report.gallery import GalleryItem, disagreements
from pipeline.results.report.histograms import histogram_figures
from pipeline.results.report.loading import load_results
from pipeline.results.report.provenance import Provenance, provenance
from pipeline.results.report.reliability import reliability_figures
from pipeline.results.report.result_tables import conditions_table, methods_table, set_table, severity_table
from pipeline.results.report.results import Results
from pipeline.results.report.severity import severity_figures
from pipeline.results.report.spending import spending
from pipeline.results.report.table import Table, used_marks
from pipeline.results.studies import combine

METHODS_NOTE = (
    "Which method is right most often, and how far that is more than chance. A mean over several sets has no test: an "
    "interval that does not include 0 is a hint there, and the paired tests, set by set, say where it is more. Methods "
    "that look at labels are for analysis and never count as the best."
)
CONDITIONS_NOTE = (
    "In-domain: images like those the expert was trained on. Base-to-novel: the same task on a data set from "
    "elsewhere. Noise and digital: the in-domain images, corrupted."
)
TESTS_NOTE = (
    "Two methods are compared on the same images, so that only images count on which one is right and the other wrong."
)
SETS_NOTE = (
    "Balanced accuracy counts every class alike. AUC: one class against the rest, mean over classes. ECE: how far "
    "stated confidence is from the rate of being right; chance only adds to it, and adds again whenever images are "
    "drawn anew, so its interval lies too high and may even leave out the value. Err: errors as a percentage of the "
    "generalist's. BE: the balanced error over severities as a ratio to the generalist's; rBE: the same with the "
    "error on clean images taken from both (MedMNIST-C's definitions, with the generalist as reference). Accuracy "
    "equal to the rate of the most common class, with few classes predicted, means that a method has collapsed. Mean "
    "λ is the weight of the expert that was applied."
)
GALLERY_NOTE = (
    "The images on which generalist and expert disagree most, largest divergence first, with the class and the "
    "probability that each gives, the weight λ of the expert, and what the merged model answers. They are chosen for "
    "disagreement: what is right here says nothing about how often a model is right."
)
DATA_NOTE = "What the evaluation sets hold, and where their images come from."
LAST = ("costs", "data")
"""Chapters that come after those of figures."""
ANSWER = ("class_name", "probability")
COSTS_NOTE = (
    "Merging online runs every source and the merged model each time: 3 B for a generalist and an expert. Here stage "
    "one pays for the sources once; scoring with a merged model that whole batches share is then 1 B, as often as it "
    "is repeated. Where every image has a λ of its own it is from 2 B, where a batch goes through both models' "
    "weights at once, up to one forward call for each image, where the models are merged anew for each (the merge "
    "loop). What is not listed was read from stage one without a forward pass."
)


BENCHMARKS_NOTE = (
    "What `pipeline bench` measured, on the machine that each caption names: ways of doing the same work took turns in "
    "one process, so that ratios hold where seconds do not. These figures say nothing about the images above."
)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chapter of figures and the function that draws them from run directories."""

    id: str
    title: str
    note: str
    draw: Callable[[Sequence[Path]], Sequence[Figure]]


DRAWINGS = (
    Drawing(
        "coefficients",
        "Coefficients",
        "How many images got which weight of the expert. With T³'s own mapping at γ = 1 there can only be three "
        "clusters: exactly 1 where the expert is confident, 0 to 0.167 where the generalist is, and 0.5 to 0.667 "
        "elsewhere. The gaps are a property of the formula, not of the images.",
        histogram_figures,
    ),
    Drawing(
        "disagreement",
        "Disagreement",
        "How far the two models disagree on an image (the divergence js, at most ln 2), against how sure they are, "
        "apart for images on which both, one or none of them is right.",
        divergence_figures,
    ),
    Drawing(
        "reliability",
        "Reliability",
        "How often a method is right among the images on which it states a certain confidence. On the diagonal, stated "
        "confidence can be taken at its word.",
        reliability_figures,
    ),
    Drawing("severity", "Severity", "Accuracy as the same images are corrupted more and more.", severity_figures),
)


@dataclass(frozen=True, slots=True)
class Chapter:
    """A section of the page: what to know before reading it, its tables and its figures."""

    id: str
    title: str
    note: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    gallery: tuple[GalleryItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Content:
    """All that the page shows, in its order."""

    name: str
    answer: Answer
    chapters: tuple[Chapter, ...]
    marks: tuple[Mark, ...]
    provenance: tuple[Provenance, ...]

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables, in the page's order."""
        return tuple(table for chapter in self.chapters for table in chapter.tables)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures, in the page's order."""
        return tuple(figure for chapter in self.chapters for figure in chapter.figures)

    @property
    def symbols(self) -> dict[str, str]:
        """Symbol of every mark by its code."""
        return {mark.code: mark.symbol for mark in self.marks}


def gather(runs: Sequence[Path], *, figures: bool = True, benchmarks: Path | None = None) -> Content:
    """Evaluate ``runs`` and collect results and provenance; without ``figures``, nothing is drawn.

    ``benchmarks`` is a folder of what `pipeline bench` kept, which becomes a chapter.

    Raises :class:`~pipeline.errors.RunDirectoryError` as :func:`~pipeline.results.studies.combine` does.
    """
    run_jsons = [read_run(run) for run in runs]
    study = combine(runs)
    results = load_results(study, runs, run_jsons)
    costs = spending(run_jsons)
    about_costs, about_data = costs_table(results, costs), dataset_tables(run_jsons)
    chapters = result_chapters(results, methods_table(results, costs), about_costs, about_data)
    if figures:
        chapters = with_figures(chapters, runs, results)
    if figures and benchmarks is not None:
        drawn = tuple(benchmark_figures(benchmarks))
        chapters = (*chapters, Chapter("benchmarks", "Benchmarks", BENCHMARKS_NOTE, figures=drawn))
    used = used_marks(table for chapter in chapters for table in chapter.tables)
    return Content(
        name=", ".join(results.studies),
        answer=find_answer(results, costs),
        chapters=unique_ids(chapters),
        marks=tuple(mark for code, mark in MARKS.items() if code in used),
        provenance=tuple(
            provenance(run, run_json, study.frame.filter(pl.col("run") == str(run)))
            for run, run_json in zip(runs, run_jsons, strict=True)
        ),
    )


def result_chapters(
    results: Results, methods: Table, costs: Table | None, data: Sequence[Table]
) -> tuple[Chapter, ...]:
    """The chapters of tables: methods, conditions, paired tests, evaluation sets, cost, data."""
    sets: list[Table] = []
    for study, name, _ in results.places:
        sets.append(set_table(results, study, name))
        by_severity = severity_table(results, study, name)
        sets += [by_severity] if by_severity else []
    tests = tuple(comparison_tables(results))
    chapters = (
        Chapter("methods", "Methods", METHODS_NOTE, (methods,)),
        Chapter("conditions", "Conditions", CONDITIONS_NOTE, (conditions_table(results),)),
        Chapter("tests", "Paired tests", TESTS_NOTE, tests),
        Chapter("sets", "Evaluation sets", SETS_NOTE, tuple(sets)),
        Chapter("costs", "Cost", COSTS_NOTE, (costs,) if costs else ()),
        Chapter("data", "Data", DATA_NOTE, tuple(data)),
    )
    left_out = set() if results.labelled.height else {"conditions"}
    return tuple(chapter for chapter in chapters if chapter.tables and chapter.id not in left_out)


def with_figures(chapters: Sequence[Chapter], runs: Sequence[Path], results: Results) -> tuple[Chapter, ...]:
    """Add the figures: to the chapters of tables that they belong to, and chapters of their own before :data:`LAST`.

    What the runs have nothing to draw for is left out.
    """
    beside = {"methods": difference_figures(results), "costs": cost_figures(runs, results.sets)}
    tables = [replace(chapter, figures=tuple(beside.get(chapter.id, ()))) for chapter in chapters]
    drawn = [
        Chapter(drawing.id, drawing.title, drawing.note, figures=tuple(drawing.draw(runs))) for drawing in DRAWINGS
    ]
    drawn.append(Chapter("gallery", "Images in dispute", GALLERY_NOTE, gallery=tuple(disagreements(runs))))
    before = [chapter for chapter in tables if chapter.id not in LAST]
    after = [chapter for chapter in tables if chapter.id in LAST]
    return (*before, *(chapter for chapter in drawn if chapter.figures or chapter.gallery), *after)


def gallery_frame(items: Sequence[GalleryItem]) -> pl.DataFrame:
    """The gallery as data, without the pictures."""
    rows = [
        {"run": str(item.run), "evaluation_set": item.evaluation_set, "row": item.row, "sample_id": item.sample_id}
        | {"js": item.js, "true_class": item.true_class, "method": item.method, "lambda": item.lam}
        | {f"{name}_{key}": getattr(answer, key, None) for name, answer in _answers(item) for key in ANSWER}
        for item in items
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _answers(item: GalleryItem) -> tuple[tuple[str, Any], ...]:
    return (("generalist", item.generalist), ("expert", item.expert), ("merged", item.merged))


def unique_ids(chapters: Sequence[Chapter]) -> tuple[Chapter, ...]:
    """Number the ids of tables and figures that would be called alike: they name files and places on the page."""
    used: set[str] = set()

    def own(name: str) -> str:
        candidates = (name, *(f"{name}-{number}" for number in range(2, len(used) + 3)))
        chosen = next(candidate for candidate in candidates if candidate not in used)
        used.add(chosen)
        return chosen

    return tuple(
        replace(
            chapter,
            tables=tuple(replace(table, id=own(table.id)) for table in chapter.tables),
            figures=tuple(replace(figure, id=own(figure.id)) for figure in chapter.figures),
        )
        for chapter in chapters
    )
