"""Which evaluation set of which run a figure shows, when the report is about several runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.results.layout import conditions, method_folders, method_labels, read_run, settings, sort_methods
from pipeline.results.report.figure import slug


@dataclass(frozen=True, slots=True)
class Study:
    """Runs of one manifest, which differ in their training seed, in the order of the seeds."""

    name: str
    runs: tuple[Path, ...]
    run_jsons: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """An evaluation set of a study, and the run that its samples are taken from: the first that has any.

    ``slug`` is unique on the page; ``note`` says which seed is shown, and is empty for a study of one run.
    """

    study: Study
    run: Path
    run_json: dict[str, Any]
    evaluation_set: str
    title: str
    slug: str
    note: str


def group_runs(runs: Sequence[Path]) -> list[Study]:
    """Put runs of the same manifest together, as seeds of one another; studies come in the order of their first run."""
    found: dict[str, list[tuple[int, Path, dict[str, Any]]]] = {}
    for run in runs:
        run_json = read_run(run)
        manifest = run_json["manifest"]
        seed = manifest.get("seeds", {}).get("training", 0)
        found.setdefault(str(manifest.get("name", run.name)), []).append((seed, run, run_json))
    studies = []
    for name, members in found.items():
        members.sort(key=lambda member: member[0])
        seeds, paths, run_jsons = zip(*members, strict=True)
        studies.append(Study(name, paths, run_jsons, seeds))
    return studies


def places(runs: Sequence[Path], filled: Callable[[Path, str], bool]) -> Iterator[Place]:
    """Every evaluation set of every study for which ``filled(run, evaluation_set)`` holds, in the manifest's order."""
    studies = group_runs(runs)
    used: set[str] = set()
    for study in studies:
        for name in dict.fromkeys(name for run_json in study.run_jsons for name in conditions(run_json)):
            index = next((index for index, run in enumerate(study.runs) if filled(run, name)), None)
            if index is None:
                continue
            run_json = study.run_jsons[index]
            condition = conditions(run_json).get(name)
            words = [study.name] * (len(studies) > 1) + [name] + ([condition] if condition else [])
            identifier = _unused(slug(*[study.name] * (len(studies) > 1), name), used)
            yield Place(
                study=study,
                run=study.runs[index],
                run_json=run_json,
                evaluation_set=name,
                title=", ".join(words),
                slug=identifier,
                note=_seed_note(study, index),
            )


def main_methods(run: Path, run_json: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Folders and labels of those methods of ``names`` that the run has, each at its first settings."""
    present = sort_methods(method_folders(run, run_json), run_json)
    labels = method_labels(run, present)
    found = {name: [method for method in present if method.split("@", maxsplit=1)[0] == name] for name in names}
    return {methods[0]: labels[methods[0]] for methods in found.values() if methods}


def setting_labels(folders: Sequence[Path]) -> list[str]:
    """Folders of rules as people read them: the name, and the settings that are not its defaults."""
    labels = []
    for folder in folders:
        changed = (settings(folder) or {}).get("changed", {})
        listed = ", ".join(f"{name}={value}" for name, value in changed.items())
        name = folder.name.split("@", maxsplit=1)[0]
        labels.append(f"{name} ({listed})" if listed else folder.name)
    return labels


def sentences(*texts: str) -> str:
    """Join those sentences that there are."""
    return " ".join(text for text in texts if text)


def _seed_note(study: Study, index: int) -> str:
    if len(study.runs) == 1:
        return ""
    place = "the first" if index == 0 else f"number {index + 1}"
    return f"Training seed {study.seeds[index]}, {place} of {len(study.runs)}."


def _unused(name: str, used: set[str]) -> str:
    candidate, number = name, 1
    while candidate in used:
        number += 1
        candidate = f"{name}-{number}"
    used.add(candidate)
    return candidate
