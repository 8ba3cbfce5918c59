"""The heatmap's colours as people see them who lack a kind of cones, and in grey."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from vblora_lab import plots
from vblora_lab.widgets._source import source

# Machado, Oliveira, Fernandes 2009, severity 1: linear RGB to what is seen of it.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip
PAPER = {"RAMP": "#ffffff", "DARK_RAMP": "#111111", "plots": "#ffffff"}
vision = pytest.mark.parametrize("matrix", VISIONS.values(), ids=VISIONS)


def stops(name: str) -> list[str]:
    """A list of colours in the heatmap's JavaScript."""
    listed = re.search(
        rf"^const {name} = \[(.*)\];$", source("bank_heatmap/colours.js"), re.MULTILINE
    )
    return re.findall(r"#[0-9a-f]{6}", listed[1])


def shades(name: str) -> np.ndarray:
    """(33, 3): a ramp from weight 0 to 1, between its stops as the browser mixes them."""
    at = np.linspace(0, 1, 33)
    if name == "plots":
        return plots.WEIGHTS(at)[:, :3]
    colours = np.array([to_rgb(stop) for stop in stops(name)])
    return np.stack([np.interp(at, np.linspace(0, 1, len(colours)), c) for c in colours.T], axis=1)


def lab(colours, matrix: np.ndarray) -> np.ndarray:
    """(n, 3) CIELAB of sRGB colours, seen so."""
    rgb = np.atleast_2d(colours)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ matrix.T, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    ratio = seen @ to_xyz.T / to_xyz.sum(axis=1)  # to white
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@vision
@pytest.mark.parametrize("ramp", PAPER)
def test_more_weight_is_always_farther_from_the_page_in_lightness(ramp, matrix):
    lightness = lab(shades(ramp), matrix)[:, 0]
    page = lab(to_rgb(PAPER[ramp]), matrix)[0, 0]
    away = np.abs(lightness - page)
    assert (np.diff(away) > 0).all()
    assert (np.diff(away[::8]) > 8).all()  # quarters of weight are told apart
    assert away[0] > 14  # and the least from "not chosen"


@vision
@pytest.mark.parametrize("kinds", ["FOOTPRINT", "DARK_FOOTPRINT"])
def test_first_last_and_both_are_told_apart(kinds, matrix):
    seen = lab([to_rgb(colour) for colour in stops(kinds)], matrix)
    for a, b in combinations(seen, 2):
        assert np.linalg.norm(a - b) > 20


@pytest.mark.parametrize("kinds", ["FOOTPRINT", "DARK_FOOTPRINT"])
def test_first_last_and_both_are_told_apart_in_grey(kinds):
    lightness = lab([to_rgb(colour) for colour in stops(kinds)], VISIONS["normal"])[:, 0]
    assert np.diff(sorted(lightness)).min() > 8


@vision
def test_runs_in_a_figure_are_told_apart(matrix):
    colours, dashes, marks = zip(*plots.STYLES, strict=True)
    for a, b in combinations(lab([to_rgb(colour) for colour in colours], matrix), 2):
        assert np.linalg.norm(a - b) > 10
    assert len(set(dashes)) == len(set(marks)) == len(colours)  # and without any colour
