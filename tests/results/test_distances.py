import json
import math
import re
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pipeline.merging.distances import Distance, distances
from pipeline.results.distances import distances_figure, distances_json, distances_table, layer_labels

SVG = "{http://www.w3.org/2000/svg}"


def state(seed: int, blocks: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"logit_scale": (), "visual.conv1.weight": (4, 3)}
    for block in range(blocks):
        shapes |= {f"visual.blocks.{block}.weight": (6, 5), f"visual.blocks.{block}.bias": (6,)}
    shapes |= {"transformer.0.weight": (3, 3), "transformer.1.weight": (3, 3), "ln_final.weight": (3,)}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def between(*names: str, blocks: int = 3) -> dict[str, list[Distance]]:
    """Distances between consecutively seeded random models, by the name of the pair."""
    return {name: distances(state(0, blocks), state(seed + 1, blocks)) for seed, name in enumerate(names)}


def shown(table: Table, width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines_drawn(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    """Points of the paths of one colour that join more than one point; a gap begins a new list."""
    found = []
    for element in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if f"stroke: {colour}" in element.get("style", "") and "stroke-width: 1.4" in element.get("style", ""):
            for piece in element.get("d", "").split("M")[1:]:
                numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", piece)]
                found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def by_hand(first: dict[str, Tensor], second: dict[str, Tensor], start: str) -> tuple[float, float]:
    """Relative distance and angle in degrees of all keys that start with ``start``, as one vector."""
    a, b = (
        np.concatenate([value.double().numpy().ravel() for key, value in weights.items() if key.startswith(start)])
        for weights in (first, second)
    )
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / np.linalg.norm(a)), math.degrees(math.acos(cosine))


def test_table_shows_components_first_then_encoder_layers_then_head_layers() -> None:
    table = distances_table(between("generalist → expert"))
    assert [str(cell) for cell in table.columns[0].cells] == [
        *("encoder", "head"),
        *("visual.conv1", "visual.blocks.0", "visual.blocks.1", "visual.blocks.2"),
        *("logit_scale", "transformer.0", "transformer.1", "ln_final"),
    ]


def test_table_shows_distance_and_angle_of_every_pair() -> None:
    table = distances_table(between("a → b", "a → c"))
    rows = list(zip(*(map(str, column.cells) for column in table.columns), strict=True))
    for place, start in ((0, "visual."), (3, "visual.blocks.0")):
        for seed in (1, 2):
            relative, angle = by_hand(state(0), state(seed), start)
            assert rows[place][1 + seed].split() == [f"{relative:.4f}", f"{angle:.2f}°"]
    assert rows[0][1] == str(12 + 3 * 36)


def test_no_figure_of_three_pairs_is_cut_on_a_narrow_terminal() -> None:
    pairs = between("site-alpha → site-beta", "site-alpha → site-gamma", "site-beta → site-gamma")
    text = shown(distances_table(pairs), width=80)
    assert "…" not in text
    for place, column in enumerate(distances_table(pairs).columns):
        if place:
            assert all(str(cell).strip() in text for cell in column.cells)


def test_table_names_what_has_no_figure() -> None:
    rows = distances(
        {"visual.x": torch.zeros(2), "y": torch.zeros(2)}, {"visual.x": torch.ones(2), "y": torch.zeros(2)}
    )
    encoder, head, *_ = (str(cell).split() for cell in distances_table({"p": rows}).columns[2].cells)
    assert encoder == ["∞", "–"]
    assert head == ["0.0000", "–"]


def test_markup_in_names_is_shown_as_written() -> None:
    assert "[red]a[/red] → b" in shown(distances_table(between("[red]a[/red] → b")), width=200)


def test_json_holds_components_layers_and_tensors() -> None:
    value = distances_json(between("a → b", "a → c"))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert [entry["pair"] for entry in value] == ["a → b", "a → c"]
    first = value[0]
    assert [row["name"] for row in first["components"]] == ["encoder", "head"]
    assert [row["name"] for row in first["tensors"]] == list(state(0))
    layer = next(row for row in first["layers"] if row["name"] == "visual.blocks.1")
    relative, angle = by_hand(state(0), state(1), "visual.blocks.1")
    assert layer["component"] == "encoder"
    assert layer["elements"] == 36
    assert layer["relative_distance"] == pytest.approx(relative, rel=1e-12)
    assert layer["angle_degrees"] == pytest.approx(angle, rel=1e-9)
    assert layer["cosine"] == pytest.approx(math.cos(math.radians(angle)), rel=1e-9)


def test_json_has_null_where_there_is_no_number() -> None:
    rows = distances({"x": torch.zeros(2)}, {"x": torch.ones(2)})
    tensor = distances_json({"p": rows})[0]["tensors"][0]
    assert (tensor["relative_distance"], tensor["cosine"], tensor["angle_degrees"]) == (None, None, None)


def test_figure_is_svg_whose_text_is_text_and_which_needs_nothing_from_outside() -> None:
    svg = distances_figure(between("a → b", "a → c"))
    found = texts(svg)
    for expected in ("a → b", "a → c", "encoder", "head", "angle, degrees", "conv1", "blocks.0", "logit_scale"):
        assert found.count(expected) == 1, expected
    assert not re.search(r'href="(?!#)|url\((?!#)|@import', svg)


def test_equal_figures_give_equal_bytes() -> None:
    assert distances_figure(between("a → b")) == distances_figure(between("a → b"))


def test_lines_follow_the_distances_layer_by_layer() -> None:
    svg = distances_figure(between("a → b"))
    encoder = lines_drawn(svg, "#5b7083")[0]
    expected = [
        by_hand(state(0), state(1), start)[0] for start in ("visual.conv1", *(f"visual.blocks.{n}" for n in range(3)))
    ]
    heights = np.array([y for _, y in encoder])
    # SVG counts downwards from the top: heights are the distances up to scale and shift.
    scaled = (heights[0] - heights) / (heights[0] - heights[1]) * (expected[1] - expected[0]) + expected[0]
    np.testing.assert_allclose(scaled, expected, rtol=1e-3)
    assert [x for x, _ in encoder] == sorted(x for x, _ in encoder)


def test_a_single_value_has_a_distance_but_leaves_a_gap_in_the_angles() -> None:
    drawn = lines_drawn(distances_figure(between("a → b")), "#5b7083")
    # Encoder and head of the distances, then of the angles; the last is the legend's.
    assert [len(points) for points in drawn[:-1]] == [4, 4, 4, 3]


def test_infinite_distances_leave_a_gap() -> None:
    first, second = state(0, blocks=5), state(1, blocks=5)
    for name in ("weight", "bias"):
        first[f"visual.blocks.2.{name}"].zero_()
    drawn = lines_drawn(distances_figure({"p": distances(first, second)}), "#5b7083")
    # The encoder's six layers without the fourth, for distances and for angles.
    assert [len(points) for points in drawn[:-1]] == [3, 2, 4, 3, 2, 3]


def test_figure_of_a_model_without_a_head_shades_nothing() -> None:
    weights = {"visual.a.weight": torch.ones(2), "visual.b.weight": torch.ones(2)}
    svg = distances_figure({"p": distances(weights, weights)})
    assert "head" not in texts(svg)
    assert "#f1f4f7" not in svg
    assert "#f1f4f7" in distances_figure(between("p"))


def test_names_that_users_chose_are_drawn_as_written() -> None:
    names = ["_hidden → $x^2$", "</text><script>alert(1)</script> --> b"]
    svg = distances_figure(between(*names))
    assert "<script>" not in svg
    found = [unescape(text) for text in texts(svg)]
    assert all(name in found for name in names)


def test_sixty_layers_do_not_overlap() -> None:
    svg = distances_figure(between("a → b", blocks=55))
    root = ElementTree.fromstring(svg)
    places = sorted(
        {
            round(float(match[1]), 2)
            for element in root.iter(f"{SVG}text")
            if "rotate(-90" in element.get("transform", "") and "8px" in element.get("style", "")
            if (match := re.match(r"translate\(([\d.]+)", element.get("transform", "")))
        }
    )
    assert len(places) == 60
    assert min(np.diff(places)) > 8


def test_labels_of_numbered_blocks_are_numbers() -> None:
    names = ["visual.conv1", "visual.blocks.0", "visual.blocks.1", "visual.norm", "blocks.0", "blocks.1", "head"]
    assert layer_labels(names) == ["conv1", "blocks.0", "1", "norm", "blocks.0", "1", "head"]
