import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.results.report.drawing import INK, PALETTE, colour, draw, look_of, spread, stylesheet
from pipeline.results.report.figure import slug

HOSTILE = '<script>alert(1)</script> id="x" $a_b$ #0a7476'


def ids_of(svg: str) -> list[str]:
    return re.findall(r'\bid="([^"]*)"', "".join(re.findall(r"<[^>]+>", svg)))


def paint(figure: Any) -> None:
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=colour("series-t3"), label=HOSTILE)
    axes.imshow(np.full((2, 2, 4), 99, np.uint8), interpolation="none")
    axes.patch.set_visible(False)
    axes.set_title(HOSTILE, color=INK)


def test_equal_figures_give_equal_bytes_and_ids_begin_with_the_prefix() -> None:
    assert draw("a", 2, paint) == draw("a", 2, paint)
    for prefix in ("a", "b"):
        assert all(name.startswith(f"{prefix}-") for name in ids_of(draw(prefix, 2, paint)))


def test_every_reference_has_its_id_and_every_id_is_used() -> None:
    svg = draw("a", 2, paint)
    ids = ids_of(svg)
    assert len(ids) == len(set(ids)) > 0
    assert set(ids) == set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))


def test_what_users_named_is_text_and_stays_as_it_is() -> None:
    svg = draw("a", 2, paint)
    assert "<script" not in svg
    assert '&lt;script&gt;alert(1)&lt;/script&gt; id="x" $a_b$ #0a7476' in svg


def test_colours_are_the_pages() -> None:
    tags = "".join(re.findall(r"<[^>]+>", draw("a", 2, paint)))
    assert "currentColor" in tags
    assert "var(--series-t3, #0a7476)" in tags
    assert not re.search(r'(?:fill|stroke): #|"#[0-9a-f]{6}', tags)
    assert "http" not in tags


def test_numbers_in_paths_are_short() -> None:
    paths = re.findall(r'\sd="([^"]*)"', draw("a", 2, paint))
    assert paths
    assert not re.search(r"\.\d{3}", "".join(paths))


def test_stylesheet_gives_every_colour_a_value_on_each_ground() -> None:
    css = stylesheet()
    for name, (light, dark) in PALETTE.items():
        assert css.count(f"--{name}: {light};") == 2
        assert css.count(f"--{name}: {dark};") == 1
    assert len({light for light, _ in PALETTE.values()}) == len(PALETTE)


def test_a_method_has_one_look_at_all_settings() -> None:
    assert look_of("t3@1a2b3c4d") == look_of("t3")
    assert look_of("soup") == look_of("ties")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0]),
        ([5.0, 5.0], [4.5, 5.5]),
        ([3.0, 0.0, 3.0], [2.5, 0.0, 3.5]),
        ([0.0, 0.4, 0.8], [-0.6, 0.4, 1.4]),
        ([], []),
    ],
)
def test_labels_are_moved_apart_around_what_they_stand_for(values: list[float], expected: list[float]) -> None:
    assert spread(values, 1.0) == pytest.approx(expected)


@given(st.lists(st.floats(-100, 100), max_size=12))
def test_spread_labels_never_overlap_and_keep_their_order(values: list[float]) -> None:
    places = np.array(spread(values, 1.0))
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    assert (np.diff(places[order]) > 1.0 - 1e-9).all()


def test_slugs_are_fit_for_ids() -> None:
    assert slug("PBC 28", "set/über@é") == "pbc-28-set-ber"
    assert slug("λ") == "unnamed"
