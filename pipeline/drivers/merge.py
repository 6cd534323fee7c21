"""``pipeline merge``: one merged checkpoint as a file of its own, with a card that says how it came about."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.drivers.opening import open_models, require_models
from pipeline.errors import ManifestError
from pipeline.manifest.entries import check_entry
from pipeline.manifest.schema import Manifest
from pipeline.methods import METHODS
from pipeline.models.checkpoints import digest_weights, published_layout, write_checkpoint
from pipeline.models.publications import CARD_KEY
from pipeline.stages.selection import Selected, select, select_methods
from pipeline.stages.static import merge_statically

SUFFIX = ".safetensors"


def merge(
    manifest: Manifest, out: Path, *, method: str | None, settings: Sequence[str], lam: float | None
) -> dict[str, Any]:
    """Merge the manifest's models by a static ``method``, or at ``lam``, write ``out`` and return its card.

    ``settings`` are NAME=VALUE; what they do not name is the manifest's entry of that method, else the default.
    :class:`ManifestError` for a method that merges per batch, a setting that is unknown or out of range, and an
    ``out`` that is no .safetensors file.
    """
    if out.suffix != SUFFIX:
        raise ManifestError(f"--out: must end in {SUFFIX}, got {out}")
    selected = _choose(manifest, method, settings, lam)
    require_models(manifest, [selected])
    models = open_models(manifest)
    merged = merge_statically(models, selected, manifest.prompts.text_tower)
    state = merged.state
    card: dict[str, Any] = {
        "architecture": models.architecture.config,
        "preprocessing": models.preprocessing.as_open_clip(),
        "merge": {
            "method": selected.method.name,
            "settings": dict(selected.variant.settings),
            "lambda": merged.lam,
            "text_tower": manifest.prompts.text_tower,
            "sources": dict(models.digests),
        },
        "digest": digest_weights(state),
    }
    if models.class_names is not None:
        card["class_names"] = list(models.class_names)
    write_checkpoint(
        out, published_layout(models.model, state), {CARD_KEY: json.dumps(card, sort_keys=True, ensure_ascii=False)}
    )
    return card


def _choose(manifest: Manifest, method: str | None, settings: Sequence[str], lam: float | None) -> Selected:
    if (method is None) == (lam is None):
        raise ManifestError("merge: give either --method or --lambda")
    if method is None:
        if settings:
            raise ManifestError("--set: goes with --method, not with --lambda")
        assert lam is not None
        if not 0 <= lam <= 1:
            raise ManifestError(f"--lambda: must lie in [0, 1], got {lam}")
        return select(manifest, METHODS["soup"], {"alpha": lam})
    given = _parse(settings)
    try:
        found, values = check_entry({"name": method, **given}, manifest.checkpoints)
    except ValueError as error:
        raise ManifestError(f"--method: {error}") from error
    if found.combination != "static":
        raise ManifestError(f"--method: {method} gives no single merged model; name a static method, or give --lambda")
    listed = select_methods(manifest, [method])
    if len(listed) > 1 and not given:
        raise ManifestError(f"--method: the manifest has {method} at several settings; say with --set which")
    return select(manifest, found, values if len(listed) > 1 else {**listed[0].settings, **values})


def _parse(settings: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise ManifestError(f"--set: must be NAME=VALUE, got {text!r}")
        if name.strip() in pairs:
            raise ManifestError(f"--set: {name.strip()} is given twice")
        pairs[name.strip()] = value.strip()
    return pairs
