"""What lies in a run directory (DESIGN section 6), as the results read it: ``run.json``, folders, parts, settings."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.coefficients.streams import BY_LABEL
from pipeline.errors import RunDirectoryError
from pipeline.methods import LABELS, METHODS, USER_LABELS

OF_RUN = frozenset({"window", "seed"})
LEFT_OUT = "left_out"
"""Entry of ``run.json``: evaluation sets of the manifest that a study went on without, and why."""
FAILED = "failed"
"""Entry of ``run.json``: what stopped other runs of the study that made this one."""
PART_NAME = re.compile(r"part-(\d{5,})\.(?:parquet|json)")


@dataclass(frozen=True, slots=True)
class PredictionFolder:
    """Where the predictions of one method for one evaluation set lie."""

    run: Path
    method: str
    evaluation_set: str

    @property
    def path(self) -> Path:
        """Folder of the Parquet parts."""
        return self.run / "predictions" / self.method / self.evaluation_set

    @property
    def ledger(self) -> Path:
        """Folder of the ledger's parts, one for each part of predictions that a forward was spent on."""
        return self.run / "ledger" / "infer" / self.method / self.evaluation_set

    @property
    def rejects(self) -> Path:
        """Folder of the images that stage two had to set apart."""
        return self.run / "rejects" / "infer" / self.method / self.evaluation_set

    def __str__(self) -> str:
        """Name method and evaluation set the way every message of this room does."""
        return f"{self.path}: method '{self.method}', evaluation set '{self.evaluation_set}'"


def read_run(run: Path) -> dict[str, Any]:
    """Read ``run.json``; :class:`RunDirectoryError` when ``run`` is not a run directory or the file is damaged."""
    path = run / "run.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunDirectoryError(
            f"{run}: holds no run.json, so it is not a run directory; give the folder that `pipeline precompute` wrote"
        ) from error
    except ValueError as error:
        raise RunDirectoryError(f"{path}: is not valid JSON ({error}); run `pipeline precompute` again") from error
    if not isinstance(value, dict) or not isinstance(value.get("manifest"), dict):
        raise RunDirectoryError(f"{path}: holds no manifest; run `pipeline precompute` again")
    return value


def conditions(run_json: dict[str, Any]) -> dict[str, str | None]:
    """Condition of each evaluation set of the manifest, in the manifest's order."""
    return {entry["name"]: entry.get("condition") for entry in run_json["manifest"].get("evaluation_sets", [])}


def sort_methods(names: Iterable[str], run_json: dict[str, Any]) -> list[str]:
    """Order methods as the manifest lists them; ``name@settings`` follows ``name``, unlisted names come last."""
    listed = [str(name) for name in run_json.get("variants") or run_json["manifest"].get("methods", [])]
    return _sorted_as_listed(names, listed)


def prediction_folders(run: Path, run_json: dict[str, Any]) -> list[PredictionFolder]:
    """Every method with each evaluation set that any method has predictions for, evaluation set by evaluation set.

    A folder without a part is listed too where another method has some: the caller decides what that means. What only
    a sweep asked for is left out.
    """
    root = run / "predictions"
    methods = sort_methods(method_folders(run, run_json), run_json)
    filled = {name for method in methods for name in folder_names(root / method) if parts(root / method / name)}
    methods = [method for method in methods if any(parts(root / method / name) for name in filled)]
    listed = conditions(run_json)
    evaluation_sets = _sorted_as_listed(filled - run_json.get(LEFT_OUT, {}).keys() if listed else filled, list(listed))
    return [PredictionFolder(run, method, name) for name in evaluation_sets for method in methods]


def is_sweep_variant(run_json: Mapping[str, Any], method: str) -> bool:
    """Whether a method at these settings (its folder) is there for ``pipeline sweep`` alone.

    It is not when the manifest lists it, or ``pipeline infer`` was asked for it too.
    """
    swept = {key for sweep in run_json.get("sweeps", []) for key in sweep["keys"]}
    asked_for = {*run_json.get("variants", []), *run_json.get("ledger", {}).get("infer", {})}
    return method in swept - asked_for


def method_folders(run: Path, run_json: Mapping[str, Any]) -> list[str]:
    """Folders of predictions, in alphabetical order, without those that only a sweep asked for."""
    return [name for name in folder_names(run / "predictions") if not is_sweep_variant(run_json, name)]


def rule_folders(run: Path, run_json: Mapping[str, Any]) -> list[str]:
    """Folders of coefficients, in alphabetical order, without those of rules that only a sweep led to."""
    swept = {folder for sweep in run_json.get("sweeps", []) for folder in sweep["coefficients"]}
    rules = [item["rule"] for item in run_json.get("method_settings", {}).values() if "rule" in item]
    used = [{**rule, "name": rule["name"].replace(":", ".")} for rule in rules]
    root = run / "coefficients"
    return [name for name in folder_names(root) if name not in swept or _spelled(root / name) in used]


def parts(folder: Path) -> dict[int, Path]:
    """Committed parts of a folder by their index, in order; empty when there is no such folder."""
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := PART_NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def folder_names(root: Path) -> list[str]:
    """Names of the folders in ``root``, hidden ones left out, in alphabetical order."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def settings(folder: Path) -> Any:
    """Settings of a rule or method, from the JSON file beside its folder; None where there is no such file."""
    path = folder.with_name(f"{folder.name}.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunDirectoryError(f"{path}: is not valid JSON ({error}); run `pipeline infer` again") from error


def method_labels(run: Path, methods: Iterable[str]) -> dict[str, str]:
    """Methods by folder as people read them: the name and the settings that are not its defaults.

    The window and the seed are left out, which a run has but one of; where two would then be called alike, the folder's
    name stays.
    """
    labels = {method: _label(run, method) for method in dict.fromkeys(methods)}
    called = Counter(labels.values())
    return {method: label if called[label] == 1 else method for method, label in labels.items()}


def sees_labels(run: Path, method: str) -> bool:
    """Whether a method looks at labels, by its rule or by a stream made from them: for analysis, and never the best."""
    known = METHODS.get(method.split("@", maxsplit=1)[0])
    given = settings(run / "predictions" / method) or {}
    used = given.get("settings", {})
    order = str(used.get("grouping", {}).get("order", "arrival")).split("(", maxsplit=1)[0]
    shown = used.get("rule", {}).get(USER_LABELS.name) == "given"
    return (known is not None and LABELS in known.needs) or order in BY_LABEL or shown


def name_parts(indices: Iterable[int]) -> str:
    """Part names for a message: the first three, then how many more."""
    names = [f"part-{index:05d}" for index in sorted(indices)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _spelled(folder: Path) -> dict[str, Any]:
    """A rule's name and settings as ``run.json`` spells them; a folder without a JSON file stands for the defaults."""
    found = settings(folder)
    if found is not None:
        return {**found["settings"], "name": found["name"]}
    defaults = METHODS[folder.name].settings if folder.name in METHODS else ()
    return {**{setting.name: setting.default for setting in defaults}, "name": folder.name}


def _label(run: Path, method: str) -> str:
    changed = (settings(run / "predictions" / method) or {}).get("changed", {})
    own = {name: value for name, value in changed.items() if name not in OF_RUN}
    listed = ", ".join(f"{name}={value}" for name, value in own.items())
    name = method.split("@", maxsplit=1)[0]
    return f"{name} ({listed})" if listed else name if changed else method


def _sorted_as_listed(names: Iterable[str], listed: Sequence[str]) -> list[str]:
    place = {name: position for position, name in enumerate(listed)}

    def key(name: str) -> tuple[int, str]:
        return (place.get(name, place.get(name.split("@", maxsplit=1)[0], len(listed))), name)

    return sorted(names, key=key)
