"""What evaluation sets hold and where their images come from, by their archives (arXiv 2510.27265, Tables 5 and 6)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.archives.archive import Archive, Segment
from pipeline.store.fingerprints import digest_json

# Of each evaluation set, its ``source`` as a manifest, or the copy of it in ``run.json``, lists it.
type Declared = Mapping[str, Sequence[Mapping[str, Any]]]

STATISTICS_SCHEMA = pl.Schema(
    {
        "evaluation_set": pl.String(),
        "condition": pl.String(),
        "images": pl.Int64(),
        "rejected": pl.Int64(),
        "unlabelled": pl.Int64(),
        "classes": pl.Int64(),
        "class_names": pl.List(pl.String()),
        "class_counts": pl.List(pl.Int64()),
        "smallest_class": pl.Int64(),
        "largest_class": pl.Int64(),
        "majority_rate": pl.Float64(),
        "groups": pl.Int64(),
        "stored_size": pl.String(),
        "source_size": pl.String(),
    }
)
PROVENANCE_SCHEMA = pl.Schema(
    {
        "evaluation_set": pl.String(),
        "source": pl.Int64(),
        "kind": pl.String(),
        "name": pl.String(),
        "split": pl.String(),
        "images": pl.Int64(),
        "corruptions": pl.List(pl.String()),
        "severities": pl.List(pl.Int64()),
        "sha256": pl.String(),
        "license": pl.String(),
        "homepage": pl.String(),
    }
)


@dataclass(slots=True)
class _Counts:
    labels: Counter[int | None] = field(default_factory=Counter)
    groups: set[str] = field(default_factory=set)
    corruptions: set[str] = field(default_factory=set)
    severities: set[int] = field(default_factory=set)
    rejected: int = 0


def dataset_statistics(
    archives: Mapping[str, Path], conditions: Mapping[str, str], declared: Declared | None = None
) -> pl.DataFrame:
    """One row for each evaluation set, its archive's folder given by name: :data:`STATISTICS_SCHEMA`.

    ``images`` are those stored, ``class_counts`` in the order of ``class_names``; ``majority_rate`` is a fraction of
    the labelled images, null without any; ``groups`` counts distinct group ids, null without any. Sizes are HxW pixels;
    ``source_size`` is null where neither a source nor its declaration in the manifest, ``declared``, states it. Raises
    :class:`pipeline.errors.ArchiveError` for an archive that is absent or not complete.
    """
    rows = []
    for name, path in archives.items():
        archive = Archive.open(path)
        counts = _count(archive, range(archive.parts))
        per_class = [counts.labels[label] for label in range(len(archive.class_names))]
        labelled = sum(per_class)
        sizes = [_size(identity) for identity in _identities(archive, (declared or {}).get(name, ()))]
        rows.append(
            {
                "evaluation_set": name,
                "condition": conditions.get(name),
                "images": counts.labels.total(),
                "rejected": counts.rejected,
                "unlabelled": counts.labels[None],
                "classes": len(per_class),
                "class_names": list(archive.class_names),
                "class_counts": per_class,
                "smallest_class": min(per_class),
                "largest_class": max(per_class),
                "majority_rate": max(per_class) / labelled if labelled else None,
                "groups": len(counts.groups) or None,
                "stored_size": f"{archive.geometry.height}x{archive.geometry.width}",
                "source_size": ", ".join(dict.fromkeys(size for size in sizes if size)) or None,
            }
        )
    return pl.DataFrame(rows, schema=STATISTICS_SCHEMA)


def dataset_provenance(archives: Mapping[str, Path], declared: Declared | None = None) -> pl.DataFrame:
    """One row for each source of each evaluation set: :data:`PROVENANCE_SCHEMA`.

    ``images`` are those listed, rejected ones included; ``sha256`` is what the archive recorded of the source's pixels,
    for several files the digest of theirs by name. Licence and homepage are what the data set itself states or, for a
    set that the manifest declares as MedMNIST's, what the medmnist package states. Raises
    :class:`pipeline.errors.ArchiveError` for an archive that is absent or not complete.
    """
    rows = []
    for name, path in archives.items():
        archive = Archive.open(path)
        identities = _identities(archive, (declared or {}).get(name, ()))
        for position, (segment, identity) in enumerate(zip(archive.segments, identities, strict=True)):
            counts = _count(archive, range(segment.first_part, segment.first_part + segment.parts))
            rows.append(
                {
                    "evaluation_set": name,
                    "source": position,
                    "kind": identity["kind"],
                    "name": _first(identity, "dataset", "file", "folder", "source_name"),
                    "split": identity.get("split"),
                    "images": segment.rows,
                    "corruptions": sorted(counts.corruptions),
                    "severities": sorted(counts.severities),
                    "sha256": _digest(identity),
                    **_published(identity),
                }
            )
    return pl.DataFrame(rows, schema=PROVENANCE_SCHEMA)


def _count(archive: Archive, parts: range) -> _Counts:
    counts = _Counts()
    for part in parts:
        samples = archive.samples(part)
        counts.labels.update(samples["label"].to_pylist())
        counts.groups |= _known(samples, "group_id")
        counts.corruptions |= _known(samples, "corruption")
        counts.severities |= _known(samples, "severity")
        counts.rejected += len(archive.rejects(part))
    return counts


def _known(samples: Any, column: str) -> set[Any]:
    return set(samples[column].unique().to_pylist()) - {None}


def _identities(archive: Archive, declared: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each segment, what its source was: all that the manifest declares, under what the archive recorded.

    The kind is the manifest's, because a MedMNIST set is recorded as the .npz file that it is. An archive that grew
    since the manifest was recorded says alone what its later segments are.
    """
    given = dict(enumerate(declared))
    return [_identity(segment, given.get(place, {})) for place, segment in enumerate(archive.segments)]


def _identity(segment: Segment, spec: Mapping[str, Any]) -> dict[str, Any]:
    return _with_base(spec) | _with_base(segment.source) | {"kind": spec.get("kind", segment.source["kind"])}


def _with_base(source: Mapping[str, Any]) -> dict[str, Any]:
    """A corrupted source says the rest of what it is in that of its clean images."""
    return {**source.get("of", {}), **source}


def _digest(identity: Mapping[str, Any]) -> str | None:
    return digest_json(identity["files"]) if "files" in identity else identity.get("sha256")


def _size(identity: Mapping[str, Any]) -> str | None:
    size = identity.get("size")
    if isinstance(size, int):
        return f"{size}x{size}"
    return "x".join(str(pixels) for pixels in size) if size else None


def _published(identity: Mapping[str, Any]) -> dict[str, str | None]:
    if "flag" in identity:
        # medmnist imports torch: seconds that other sets need not wait.
        from medmnist.info import HOMEPAGE, INFO

        return {"license": INFO[identity["flag"]]["license"], "homepage": HOMEPAGE}
    return {"license": identity.get("license"), "homepage": identity.get("homepage")}


def _first(identity: Mapping[str, Any], *keys: str) -> str | None:
    return next((str(identity[key]) for key in keys if identity.get(key)), None)
