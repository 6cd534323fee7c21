"""``pipeline merge``: one merged checkpoint as a file of its own, with a card that says how it came about."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeline.drivers.opening import open_models, require_models
from pipeline.errors import ManifestError, one_line
from pipeline.manifest.entries import check_settings, find_method
from pipeline.manifest.schema import Manifest
from pipeline.methods import METHODS
from pipeline.models.checkpoints import digest_weights, published_layout, write_checkpoint
from pipeline.models.publications import CARD_KEY, read_card
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
    _require_writable(manifest, out)
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
    header = {CARD_KEY: json.dumps(card, sort_keys=True, ensure_ascii=False)}
    try:
        write_checkpoint(out, published_layout(models.model, state), header)
    except (OSError, SafetensorError) as error:
        raise ManifestError(f"--out: {out} cannot be written ({one_line(error)}); give another file") from error
    return card


def _require_writable(manifest: Manifest, out: Path) -> None:
    """Nothing but an earlier export is ever overwritten."""
    if out.resolve() in {Path(reference).resolve() for reference in manifest.checkpoints.values() if reference}:
        raise ManifestError(f"--out: {out} is a checkpoint of this manifest; give another file")
    if out.is_dir() or (out.exists() and "merge" not in read_card(out)):
        raise ManifestError(f"--out: {out} is there already, and no earlier export; give another file")


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
        found = find_method(method, manifest.checkpoints)
        values = check_settings(found, given)
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
