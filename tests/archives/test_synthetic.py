import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.archives.source import SourceImage
from pipeline.archives.synthetic import SyntheticSource
from pipeline.errors import SourceError


def stack(source: SyntheticSource, start: int = 0, stop: int | None = None) -> np.ndarray:
    read = source.read(start, len(source) if stop is None else stop)
    return np.stack([np.asarray(item.image) for item in read])


def only(source: SyntheticSource, index: int) -> SourceImage:
    (item,) = source.read(index, index + 1)
    return item


@given(index=st.integers(0, 299), extra=st.integers(1, 500), seed=st.integers(0, 2**70))
def test_an_image_depends_on_seed_and_index_alone(index: int, extra: int, seed: int) -> None:
    few, many = SyntheticSource(index + 1, seed), SyntheticSource(index + extra, seed)
    first, second = only(few, index), only(many, index)
    assert (first.sample_id, first.label, first.index) == (second.sample_id, second.label, index)
    np.testing.assert_array_equal(np.asarray(first.image), np.asarray(second.image))


def test_ranges_join_without_a_seam() -> None:
    source = SyntheticSource(150, 3)
    cuts = [0, 1, 63, 64, 65, 130, 150]
    pieces = [stack(source, *pair) for pair in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(pieces), stack(source))


def test_seeds_and_neighbours_differ() -> None:
    images = stack(SyntheticSource(20, 1))
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20
    assert not np.array_equal(images, stack(SyntheticSource(20, 2)))


@pytest.mark.parametrize("classes", [2, 4, 8])
def test_classes_are_balanced_at_random(classes: int) -> None:
    source = SyntheticSource(1600, 5, classes=classes)
    counts = Counter(item.label for item in source.read(0, 1600))
    assert set(counts) == set(range(classes))
    assert len(source.class_names) == classes
    expected = 1600 / classes
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


@pytest.mark.parametrize("site", ["b", "c"])
def test_a_site_shifts_the_look_and_keeps_the_cells(site: str) -> None:
    home, away = SyntheticSource(64, 1), SyntheticSource(64, 1, site=site)
    assert [item.label for item in home.read(0, 64)] == [item.label for item in away.read(0, 64)]
    assert [item.group_id for item in home.read(0, 64)] == [item.group_id for item in away.read(0, 64)]
    assert np.abs(stack(home).mean((0, 1, 2)) - stack(away).mean((0, 1, 2))).max() > 5


@pytest.mark.parametrize("corruption", ["noise", "pixelate"])
def test_a_corruption_lies_on_the_base_image_and_grows_with_severity(corruption: str) -> None:
    base = stack(SyntheticSource(40, 1)).astype(float)
    distances = []
    for severity in range(6):
        source = SyntheticSource(40, 1, corruption=corruption, severity=severity)  # type: ignore[arg-type]
        distances.append(np.abs(stack(source) - base).mean())
        assert only(source, 3).group_id == only(SyntheticSource(40, 1), 3).group_id
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[1] > 0


def test_identity_tells_settings_apart_and_survives_pickling() -> None:
    sources = [SyntheticSource(5, 1), SyntheticSource(5, 2), SyntheticSource(5, 1, site="b"), SyntheticSource(6, 1)]
    assert len({str(source.identity) for source in sources}) == 4
    assert pickle.loads(pickle.dumps(sources[0])) == sources[0]


def test_other_sizes_show_the_same_labels() -> None:
    small, large = SyntheticSource(4, 1), SyntheticSource(4, 1, size=224)
    assert stack(large).shape == (4, 224, 224, 3)
    assert [item.label for item in small.read(0, 4)] == [item.label for item in large.read(0, 4)]


@pytest.mark.parametrize(
    "settings",
    [
        {"count": 0},
        {"seed": -1},
        {"classes": 9},
        {"classes": 1},
        {"severity": 6, "corruption": "noise"},
        {"severity": 2},
        {"site": "z"},
        {"corruption": "fog"},
        {"size": 4},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SourceError, match="synthetic source: '"):
        SyntheticSource(**{"count": 5, "seed": 1, **settings})  # type: ignore[arg-type]
