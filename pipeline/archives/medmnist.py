"""Source: a MedMNIST set by its flag, checked against its published MD5 and downloaded when it is not there."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from pipeline.archives.npz import NpzSource
from pipeline.errors import SourceError
from pipeline.store.fingerprints import digest_file

SIZES = (28, 64, 128, 224)
SPLITS = ("train", "val", "test")


def open_medmnist(flag: str, split: str, size: int, data_root: Path | None) -> NpzSource:
    """Open one split of a 2-D, single-label MedMNIST set at one of its four sizes.

    The file is looked for in ``data_root`` and ``data_root/medmnist`` (without a ``data_root``: in the medmnist
    package's own folder) and downloaded if absent. Class names come from the set's own metadata. Raises
    :class:`SourceError` for an unknown set, size or split, a digest that differs, and a failed download.
    """
    # medmnist imports torch: seconds that a command without MedMNIST sets need not wait.
    from medmnist.info import DEFAULT_ROOT, INFO

    info = _set_info(flag, INFO)
    _check_choice(flag, "size", size, SIZES)
    _check_choice(flag, "split", split, SPLITS)
    suffix = "" if size == 28 else f"_{size}"
    file_name, url, md5 = f"{flag}{suffix}.npz", info[f"url{suffix}"], info[f"MD5{suffix}"]

    root = Path(DEFAULT_ROOT or Path.home() / ".medmnist") if data_root is None else data_root
    candidates = [folder / file_name for folder in (root, root / "medmnist")]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        path = _download(url, root / file_name, md5)
    _check_digest(path, md5, url)
    return NpzSource(path, split, _class_names(info), group=flag)


def published_class_names(flag: str) -> tuple[str, ...] | None:
    """Names of a set's classes from the set's own metadata, in label order; None for a name that is no MedMNIST set.

    Raises :class:`SourceError` for a set that is three-dimensional or multi-label.
    """
    from medmnist.info import INFO

    return _class_names(_set_info(flag, INFO)) if flag in INFO else None


def _class_names(info: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(info["label"][str(index)] for index in range(len(info["label"])))


def _set_info(flag: str, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    info = known.get(flag)
    if info is None:
        nearest = difflib.get_close_matches(flag, known, n=1, cutoff=0.0)[0]
        raise SourceError(f"medmnist has no set {flag!r}; did you mean {nearest!r}?")
    if info["python_class"].endswith("3D"):
        raise SourceError(f"medmnist set {flag!r} is three-dimensional; only the 2-D sets are supported")
    if info["task"].startswith("multi-label"):
        raise SourceError(f"medmnist set {flag!r} is multi-label; only single-label sets are supported")
    return info


def _check_choice[Choice: (int, str)](flag: str, name: str, value: Choice, choices: tuple[Choice, ...]) -> None:
    if value not in choices:
        listed = ", ".join(str(choice) for choice in choices)
        raise SourceError(f"medmnist set {flag!r} has no {name} {value!r}; choose one of {listed}")


def _check_digest(path: Path, expected: str, url: str) -> None:
    actual = digest_file(path, "md5")
    if actual != expected:
        remedy = f"delete it and fetch {url} again, or list it as a plain npz source if it is meant to differ"
        raise SourceError(f"{path}: MD5 is {actual}, published is {expected}; {remedy}")


def _download(url: str, path: Path, md5: str) -> Path:
    """Do what ``medmnist.MedMNIST(download=True)`` does, without loading arrays and without a torn file."""
    from torchvision.datasets.utils import download_url

    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url(url, root=str(path.parent), filename=partial.name, md5=md5)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise SourceError(f"{path}: download failed ({error}); fetch {url} by hand and place it there") from error
    return path
