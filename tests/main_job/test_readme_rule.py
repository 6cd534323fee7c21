"""The README's rule of one's own, as it stands there, in a run."""

import re
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import yaml

from pipeline.drivers.infer import infer
from pipeline.drivers.precompute import precompute
from pipeline.engines.local import LocalEngine
from tests.main_job.factory import matrix, read_evidence, read_parts, study

README = Path(__file__).parents[2] / "README.md"


def code_block(language: str, first_line: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    return next(dedent(block) for block in blocks if block.startswith(first_line))


def test_the_rule_in_the_readme_gives_its_lambda_to_every_row(
    pair: Path, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "rules.py").write_text(code_block("python", "# rules.py"), encoding="utf-8")
    methods = yaml.safe_load(code_block("yaml", "methods:\n  - generalist\n  - rules:margin"))["methods"]
    manifest = study(tmp_path / "study", pair, archives, methods=methods)
    precompute(manifest, LocalEngine(manifest), allow_code=True)
    infer(manifest, LocalEngine(manifest), allow_code=True)

    evidence = read_evidence(manifest)
    logits = [matrix(evidence, f"logits_{name}") for name in ("generalist", "expert")]
    p_generalist, p_expert = (np.exp(z - z.max(1, keepdims=True)) for z in logits)
    p_generalist, p_expert = (p / p.sum(1, keepdims=True) for p in (p_generalist, p_expert))
    h_generalist, h_expert = (-(p * np.log(np.maximum(p, 1e-300))).sum(1) for p in (p_generalist, p_expert))
    agrees = np.array(evidence["js"].to_pylist()) < 1e-3
    folders = sorted((Path(manifest.output) / "coefficients").glob("rules.margin*"))
    sharpness = {"rules.margin": 1.0, "rules.margin@": 2.0}
    found = {path.name[:13]: read_parts(path / "cells" / "samples") for path in folders if path.is_dir()}
    assert {name.split("@")[0] for name in found} == {"rules.margin"}
    assert len(found) == 2
    for name, samples in found.items():
        expected = 1 / (1 + np.exp(-sharpness[name] * (h_generalist - h_expert)))
        expected = np.where(agrees, 1.0, expected)
        np.testing.assert_allclose(samples["lambda"].to_numpy(), expected, atol=1e-6)
    predictions = {path.name.split("@")[0] for path in (Path(manifest.output) / "predictions").iterdir()}
    assert {"rules.margin-batch", "rules.margin-lambda", "generalist"} <= predictions
