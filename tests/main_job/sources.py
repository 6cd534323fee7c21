"""What tests of K sources share: their batches and weights as a run stored them, and what open_clip answers by them."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.special import log_softmax, softmax

from pipeline.manifest import Manifest
from tests.main_job.factory import (
    PlainClip,
    chosen,
    matrix,
    read_answers,
    read_evidence,
    read_parts,
    single_precision,
    study_of_sources,
)

SITES = ("site-a", "site-b", "site-c")
Weights = dict[str, np.ndarray]


def average(states: list[Weights], shares: Any) -> Weights:
    """Σ w_k·θ_k in float64."""
    return {
        key: sum(share * state[key] for share, state in zip(shares, states, strict=True))  # type: ignore[misc]
        for key in states[0]
    }


def read_plan(manifest: Manifest, **settings: Any) -> pa.Table:
    item = chosen(manifest, "entropy-adaptive", **settings)
    assert item.rule is not None
    assert item.grouping is not None
    folder = Path(manifest.output) / "coefficients" / item.rule.folder / "cells" / "batches" / item.grouping.folder
    return read_parts(folder)


def batches_of(plan: pa.Table) -> list[list[int]]:
    batches: list[list[int]] = plan["rows"].to_pylist()
    return batches


def merged_probabilities(
    plain: PlainClip, states: list[Weights], rows: list[int], encoder: np.ndarray, head: np.ndarray
) -> np.ndarray:
    """Image tower Σ w_k·θ_k; class embeddings of each source weighted and made unit vectors; log scales weighted."""
    towers, factors = average(states, encoder), average(states, head)
    state = single_precision(towers | {"logit_scale": factors["logit_scale"]})
    embeddings = [plain.class_embeddings(single_precision(own)).double().numpy() for own in states]
    blended = sum(share * own for share, own in zip(head, embeddings, strict=True))
    blended = blended / np.linalg.norm(blended, axis=1, keepdims=True)
    p_NC: np.ndarray = softmax(plain.logits(state, rows, torch.from_numpy(np.float32(blended))), axis=1)
    return p_NC


def stored_probabilities(manifest: Manifest, key: str) -> dict[int, np.ndarray]:
    answers = read_answers(manifest, key)
    return dict(zip(answers["row"].to_pylist(), matrix(answers, "probabilities"), strict=True))


def mean_entropies(manifest: Manifest, plan: pa.Table, names: tuple[str, ...] = SITES) -> np.ndarray:
    """H̄ [B, K] in nats, float64, from the logits of evidence."""
    evidence = read_evidence(manifest)
    place = {row: position for position, row in enumerate(evidence["row"].to_pylist())}
    columns = []
    for name in names:
        log_p = log_softmax(matrix(evidence, f"logits_{name}"), axis=1)
        entropies = -(np.exp(log_p) * log_p).sum(axis=1)
        columns.append([entropies[[place[row] for row in rows]].mean() for rows in batches_of(plan)])
    return np.array(columns).T


def copy_run_of_sources(run: Manifest, models: Mapping[str, Path], folder: Path, **settings: Any) -> Manifest:
    """As ``copy_run``, of K sources."""
    copied = study_of_sources(folder, models, Path(run.archives), **settings)
    shutil.copytree(run.output, copied.output)
    return copied
