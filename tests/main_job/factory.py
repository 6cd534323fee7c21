"""Studies small enough to run in a second: a tiny pair with random weights, its manifest, and readers of its tables.

The weights are scaled such that all three branches of T³ Eq. 11 occur and λ takes hundreds of values.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from open_clip import CLIP, SimpleTokenizer, image_transform
from safetensors.torch import load_file, save_file
from scipy.special import softmax

from pipeline.archives.synthetic import SyntheticSource
from pipeline.drivers.infer import infer
from pipeline.drivers.precompute import precompute
from pipeline.drivers.summary import Summary
from pipeline.engines.engine import Job
from pipeline.engines.local import LocalEngine
from pipeline.manifest import Manifest, load_manifest
from pipeline.stages.selection import Selected, select_methods
from pipeline.stages.work import Report

MANIFEST = "study.yaml"
PART_ROWS = 128
WINDOW_ROWS = 256
METHODS = ["generalist", "expert", "t3", "t3-batch", "t3-lambda"]
MERGING = ["t3", "t3-batch", "t3-lambda"]
TEMPLATES = ["a photo of a {}.", "a microscope image of a {}."]
CELLS: list[dict[str, Any]] = [
    {"kind": "synthetic", "count": 400, "seed": 3, "site": "a"},
    {"kind": "synthetic", "count": 90, "seed": 5, "site": "c"},
]
RESULTS = ("evidence", "coefficients", "embeddings", "predictions", "rejects")


def tiny_config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(resources.files("pipeline.demo").joinpath("tiny.json").read_text())
    return config


def make_pair(folder: Path, *, seed: int = 3, change: float = 0.3) -> Path:
    """Write tiny.json, generalist.safetensors and expert.safetensors: random weights, and those perturbed."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config()
    (folder / "tiny.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    state = {key: value.clone() for key, value in CLIP(**config).state_dict().items()}
    for key, value in state.items():
        if key.startswith("visual.") and value.ndim > 1:
            value.mul_(3.0)
    state["visual.class_embedding"].mul_(0.1)
    state["logit_scale"].fill_(np.log(100.0))
    generator = torch.Generator().manual_seed(seed + 4)
    expert = {key: value.clone() for key, value in state.items()}
    for value in expert.values():
        if value.numel() > 1:
            value.add_(change * value.std() * torch.randn(value.shape, generator=generator))
    expert["logit_scale"].fill_(np.log(120.0))
    save_file(state, folder / "generalist.safetensors")
    save_file(expert, folder / "expert.safetensors")
    return folder


def study(folder: Path, pair: Path, archives: Path, precision: str = "fp32", **settings: Any) -> Manifest:
    """Write ``folder/study.yaml`` and load it; ``settings`` replace or extend its sections, one level deep."""
    content: dict[str, Any] = {
        "name": "study",
        "output": "run",
        "archives": str(archives),
        "pair": {
            "architecture": str(pair / "tiny.json"),
            "generalist": str(pair / "generalist.safetensors"),
            "expert": str(pair / "expert.safetensors"),
            "precision": precision,
        },
        "prompts": {"templates": TEMPLATES},
        "methods": METHODS,
        "part_rows": PART_ROWS,
        "grouping": {"window": {"rows": WINDOW_ROWS}},
        "compute": {"device": "cpu"},
        "evaluation_sets": [{"name": "cells", "source": CELLS}],
    }
    for key, value in settings.items():
        merges = isinstance(value, Mapping) and key in content
        content[key] = {**content[key], **value} if merges else value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(yaml.safe_dump(content))
    return load_manifest(folder / MANIFEST)


def run_precompute(manifest: Manifest) -> Summary:
    return precompute(manifest, LocalEngine(manifest))


def run_infer(manifest: Manifest, *names: str, online: bool = False) -> Summary:
    return infer(manifest, LocalEngine(manifest), names=names, online=online)


def run_both(manifest: Manifest) -> Manifest:
    run_precompute(manifest)
    run_infer(manifest)
    return manifest


@dataclass
class ShuffledEngine:
    """Several workers in this process take the items in a random order; every tenth item is run twice."""

    manifest: Manifest
    workers: int
    seed: int

    def run(self, job: Job, on_report: Callable[[Report], None]) -> None:
        generator = np.random.default_rng(self.seed)
        workers = [job.make_worker() for _ in range(self.workers)]
        for position in generator.permutation(len(job.items)):
            for _ in range(2 if position % 10 == 0 else 1):
                report = workers[generator.integers(self.workers)].run(job.items[position])
            on_report(report)

    def numeric_kind(self) -> Mapping[str, str]:
        return LocalEngine(self.manifest).numeric_kind()


def read_parts(folder: Path) -> pa.Table:
    paths = sorted(folder.glob("part-*.parquet"))
    assert paths, f"{folder} holds no parts"
    return pa.concat_tables([pq.ParquetFile(path).read().replace_schema_metadata() for path in paths])


def selected(manifest: Manifest, method: str) -> Selected:
    """A method at the manifest's settings."""
    return select_methods(manifest, [method])[0]


def rule_folder(manifest: Manifest, method: str) -> Path:
    rule = selected(manifest, method).rule
    assert rule is not None
    return Path(manifest.output) / "coefficients" / rule.folder


def read_evidence(manifest: Manifest, name: str = "cells") -> pa.Table:
    return read_parts(Path(manifest.output) / "evidence" / name)


def read_samples(manifest: Manifest, name: str = "cells") -> pa.Table:
    return read_parts(rule_folder(manifest, "t3") / name / "samples")


def read_batches(manifest: Manifest, kind: Any, name: str = "cells") -> pa.Table:
    method = {"sample": "t3", "arrival": "t3-batch", "lambda": "t3-lambda"}[kind]
    grouping = selected(manifest, method).grouping
    assert grouping is not None
    return read_parts(rule_folder(manifest, method) / name / "batches" / grouping.folder)


def predictions_folder(manifest: Manifest, method: str, name: str = "cells") -> Path:
    return Path(manifest.output) / "predictions" / selected(manifest, method).key / name


def read_predictions(manifest: Manifest, method: str, name: str = "cells") -> pa.Table:
    return read_parts(predictions_folder(manifest, method, name)).sort_by("row")


def matrix(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table[column].to_pylist(), dtype=np.float64)


def result_files(run: Path, *kinds: str) -> dict[str, bytes]:
    """Bytes of all parts of a run's tables by their path in the run."""
    folders = [run / kind for kind in kinds or RESULTS]
    files = [path for folder in folders for path in folder.rglob("part-*.parquet")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def assert_same_files(actual: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Equal names and equal bytes; says which files differ rather than how."""
    assert sorted(actual) == sorted(expected)
    assert [name for name, content in expected.items() if actual[name] != content] == []
    assert expected


def modification_times(run: Path) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("part-*.parquet")}


def copy_run(
    manifest: Manifest, folder: Path, pair: Path, precision: str = "fp32", archives: Path | None = None, **settings: Any
) -> Manifest:
    """A study that starts from a copy of another one's run, over the same archives unless others are given."""
    copied = study(folder, pair, archives or Path(manifest.archives), precision, **settings)
    shutil.copytree(manifest.output, copied.output)
    return copied


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "COV_"))}
    return {**kept, "PYTHONWARNINGS": "ignore", **changes}


def start_cli(*arguments: str, **changes: str) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, at the head of a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_cli(*arguments: str, **changes: str) -> tuple[int, str, str]:
    process = start_cli(*arguments, **changes)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def chosen(manifest: Manifest, method: str, **settings: Any) -> Selected:
    """The manifest's entry of a method with these settings, the others at whatever the entry has."""
    found = [
        item
        for item in select_methods(manifest)
        if item.method.name == method and settings.items() <= dict(item.settings).items()
    ]
    assert found, f"{method} with {settings} is none of the manifest's methods"
    return found[0]


def read_answers(manifest: Manifest, key: str, name: str = "cells") -> pa.Table:
    """Predictions in the folder ``key``, sorted by row."""
    return read_parts(Path(manifest.output) / "predictions" / key / name).sort_by("row")


class PlainClip:
    """open_clip by itself on its own preprocessing: the cells of the study, answered by any state dict."""

    TILE = 32

    def __init__(self) -> None:
        config = tiny_config()
        self._model = CLIP(**config).eval()
        transform = image_transform(config["vision_cfg"]["image_size"], is_train=False)
        sources = [SyntheticSource(spec["count"], spec["seed"], site=spec["site"]) for spec in CELLS]
        parts = [-(-len(source) // PART_ROWS) for source in sources]
        first_rows = PART_ROWS * (np.cumsum(parts) - parts)
        items = [
            (int(first) + item.index, item)
            for first, source in zip(first_rows, sources, strict=True)
            for item in source.read(0, len(source))
        ]
        self.images = {row: transform(item.image) for row, item in items}
        self.labels = {row: item.label for row, item in items}
        tokenizer = SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
        self._tokens = [
            tokenizer([template.replace("{}", name) for template in TEMPLATES]) for name in sources[0].class_names
        ]

    @torch.inference_mode()
    def class_embeddings(self, state: Mapping[str, Any]) -> torch.Tensor:
        """Embeddings [C, D] of the classes by the text tower of ``state``: means of unit vectors, made unit vectors."""
        self._load(state)
        classes = []
        for tokens in self._tokens:
            prompts = self._model.encode_text(tokens)
            mean = (prompts / prompts.norm(dim=-1, keepdim=True)).mean(dim=0)
            classes.append(mean / mean.norm())
        return torch.stack(classes)

    @torch.inference_mode()
    def logits(
        self, state: Mapping[str, Any], rows: list[int], embeddings_CD: torch.Tensor | None = None
    ) -> np.ndarray[Any, Any]:
        """Logits [N, C] of ``rows`` by ``state``, with its own class embeddings or those given."""
        torch.set_num_threads(1)
        classes = self.class_embeddings(state) if embeddings_CD is None else embeddings_CD
        self._load(state)
        tiles = []
        for start in range(0, len(rows), self.TILE):
            pixels = torch.stack([self.images[row] for row in rows[start : start + self.TILE]])
            features = self._model.encode_image(pixels)
            features = features / features.norm(dim=-1, keepdim=True)
            tiles.append(self._model.logit_scale.exp() * features @ classes.T)
        return torch.cat(tiles).double().numpy()

    @torch.inference_mode()
    def largest_features(self, state: Mapping[str, Any]) -> dict[int, float]:
        """Largest magnitude in each image's embedding, before it is made a unit vector, by row."""
        self._load(state)
        features = self._model.encode_image(torch.stack(list(self.images.values())))
        return dict(zip(self.images, features.abs().amax(dim=1).tolist(), strict=True))

    def probabilities(self, state: Mapping[str, Any], rows: list[int]) -> np.ndarray[Any, Any]:
        """Softmax of :meth:`logits`, float64."""
        p_NC: np.ndarray[Any, Any] = softmax(self.logits(state, rows), axis=1)
        return p_NC

    def _load(self, state: Mapping[str, Any]) -> None:
        self._model.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()}, strict=True)


def numpy_weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A checkpoint's tensors in float64."""
    return {key: value.double().numpy() for key, value in load_file(path).items()}


def single_precision(state: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    """What a plain merge in float64 stores: each tensor rounded to float32."""
    return {key: torch.from_numpy(np.asarray(value, dtype=np.float32)) for key, value in state.items()}


def make_sources(folder: Path, names: Sequence[str] = ("site-a", "site-b", "site-c")) -> dict[str, Path]:
    """Write tiny.json and a checkpoint for each name: random weights for the first, and those perturbed for others."""
    paths = {}
    for seed, name in enumerate(names):
        make_pair(folder / "made", change=0.2 + 0.1 * seed)
        paths[name] = folder / f"{name}.safetensors"
        shutil.copy(folder / "made" / f"{'expert' if seed else 'generalist'}.safetensors", paths[name])
    shutil.move(folder / "made" / "tiny.json", folder / "tiny.json")
    shutil.rmtree(folder / "made")
    return paths


def study_of_sources(folder: Path, models: Mapping[str, Path], archives: Path, **settings: Any) -> Manifest:
    """As ``study``, of K sources instead of a pair; their architecture lies beside the first of them."""
    first = next(iter(models.values())).parent
    study(folder, first, archives)
    content = yaml.safe_load((folder / MANIFEST).read_text())
    del content["pair"], content["methods"]
    content["sources"] = {
        "architecture": str(first / "tiny.json"),
        "models": {name: str(path) for name, path in models.items()},
    }
    for key, value in settings.items():
        merges = isinstance(value, Mapping) and key in content
        content[key] = {**content[key], **value} if merges else value
    (folder / MANIFEST).write_text(yaml.safe_dump(content, sort_keys=False))
    return load_manifest(folder / MANIFEST)
