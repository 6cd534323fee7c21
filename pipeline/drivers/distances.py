"""``pipeline inspect MANIFEST``: how far the source models are apart in weight space, layer by layer."""

from itertools import combinations
from pathlib import Path

from pipeline.drivers.opening import open_models
from pipeline.errors import ManifestError
from pipeline.manifest.schema import Manifest
from pipeline.merging.distances import Distance, distances
from pipeline.results.distances import distances_figure
from pipeline.store.files import write_text


def model_distances(manifest: Manifest) -> tuple[dict[str, list[Distance]], Path]:
    """Distances of all tensors for every two sources, the earlier one being the reference, and where the plot lies.

    The plot is ``distances.svg`` in the manifest's run directory. :class:`ManifestError` for a single model.
    """
    models = open_models(manifest)
    if len(models.names) < 2:
        raise ManifestError(f"{manifest.name}: there is one model only; name another one to compare it with")
    found = {
        f"{first} to {second}": distances(models.states[first], models.states[second])
        for first, second in combinations(models.names, 2)
    }
    path = Path(manifest.output) / "distances.svg"
    write_text(path, distances_figure(found))
    return found, path
