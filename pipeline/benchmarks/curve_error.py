"""How far class embeddings from their curve in λ are from the text tower's own, at λ that the curve never saw."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.benchmarks.bars import Bar, chart
from pipeline.benchmarks.random_pair import random_pair, short_name
from pipeline.benchmarks.requirements import CURVE_LOGIT_ERROR
from pipeline.benchmarks.ways import class_names, head_source
from pipeline.coefficients.evidence import EXPERT, GENERALIST
from pipeline.drivers.opening import open_models
from pipeline.errors import ManifestError
from pipeline.manifest import load_manifest
from pipeline.models.head_curve import fit_head_curve, logit_error
from pipeline.models.sources import SourceModels
from pipeline.progress import work_progress


def curve_error(
    architecture: str, *, classes: int, lambdas: int, threads: int, models: SourceModels | None = None
) -> dict[str, Any]:
    """Fit the curve as stage one does, then compare it with the exact head at ``lambdas`` random λ.

    ``models`` are the pair to look at, by default a random one of ``architecture``. An error is the largest change of
    any logit of any image that the difference of the heads can cause: features have unit length, so it is the factor
    on cosine similarities times the distance between class embeddings. ``seconds_exact`` is what a text forward for a
    λ takes, ``seconds_curve`` what the curve takes.
    """
    torch.set_num_threads(threads)
    source = head_source(models or random_pair(architecture, classes=classes), classes, torch.device("cpu"))
    curve = fit_head_curve(source, tolerance=CURVE_LOGIT_ERROR.bound, weights_at=_weights_at)
    forwards = source.forward_calls
    result: dict[str, Any] = {
        "architecture": architecture,
        "classes": classes,
        "class_names": class_names(classes),
        "tolerance": CURVE_LOGIT_ERROR.bound,
        "text_forwards": forwards,
        "nodes": None if curve is None else len(curve.lambdas),
        "required": CURVE_LOGIT_ERROR.bound,
    }
    if curve is not None:
        held_out = np.sort(np.random.default_rng(0).uniform(0, 1, lambdas)).tolist()
        errors, exact_seconds, curve_seconds = [], [], []
        with work_progress("bench curve", lambdas, "text forwards") as progress:
            for lam in held_out:
                exact, seconds = _timed(lambda lam=lam: source.head(_weights_at(lam)))
                exact_seconds.append(seconds)
                approximate, seconds = _timed(lambda lam=lam: curve.at(lam))
                curve_seconds.append(seconds)
                errors.append(logit_error(approximate, exact))
                progress.advance(1)
        result |= {
            "lambdas": held_out,
            "errors": errors,
            "largest_error": max(errors),
            "seconds_exact": statistics.median(exact_seconds),
            "seconds_curve": statistics.median(curve_seconds),
        }
    tried = zip(result.get("lambdas", ()), result.get("errors", ()), strict=True)
    bars = [Bar(f"λ = {lam:.3f}", error, bound=CURVE_LOGIT_ERROR.bound) for lam, error in tried]
    result |= chart(
        f"Class embeddings of {short_name(architecture)} from their curve", "largest change of any logit", bars
    )
    result["text"] = _text(result)
    return result


def pair_of(path: Path) -> SourceModels:
    """The generalist and the expert of a manifest; :class:`ManifestError` where it names no pair with prompts."""
    manifest = load_manifest(path)
    models = open_models(manifest)
    if not models.has_text or set(models.names) != {GENERALIST, EXPERT}:
        raise ManifestError(f"{path}: a curve lies between a generalist and an expert with prompts; name such a pair")
    return models


def _weights_at(lam: float) -> tuple[float, float]:
    return 1.0 - lam, lam


def _timed(work: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    value = work()
    return value, time.perf_counter() - start


def _text(result: Mapping[str, Any]) -> str:
    asked = f"{result['architecture']}, {result['classes']} classes, tolerance {result['tolerance']:g}"
    if result["nodes"] is None:
        return f"{asked}: no curve keeps it, so that every λ costs a text forward"
    largest = result["largest_error"]
    return "\n".join(
        [
            f"{asked}: {result['nodes']} nodes, {result['text_forwards']} text forwards once per run",
            f"  largest change of a logit at {len(result['errors'])} other λ: {largest:.1e}; "
            f"{CURVE_LOGIT_ERROR.text(largest)}",
            f"  a head takes {result['seconds_curve'] * 1e3:.3f} ms from the curve, "
            f"{result['seconds_exact'] * 1e3:.1f} ms from the text tower",
        ]
    )
