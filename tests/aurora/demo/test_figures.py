from __future__ import annotations

import pytest

from aurora.demo.run import PANEL, loss_curves


def points(line: str) -> list[tuple[float, float]]:
    return [tuple(map(float, point.split(","))) for point in line.split()]


def test_all_curves_are_on_one_scale() -> None:
    width, height = PANEL
    ticks, (first, second) = loss_curves({"pretrain": [(1, 8.0), (2, 4.0)], "vision": [(10, 4.0), (20, 2.0)],
                                          "language": []})
    assert ticks[0] == 0 and 8 <= ticks[-1] < 10 and len(ticks) <= 6
    assert points(first["raw"]) == [(width / 2, pytest.approx(height * (1 - 8 / ticks[-1]), abs=0.1)),
                                 (width, pytest.approx(height * (1 - 4 / ticks[-1]), abs=0.1))]
    assert points(second["raw"])[0][1] == points(first["raw"])[1][1]
    assert (second["stage"], second["steps"], second["first"]) == ("vision", 20, 4.0) and 2 < second["last"] < 4


def test_a_long_curve_has_not_more_points_than_pixels() -> None:
    _, (curve,) = loss_curves({"pretrain": [(step, 0.0) for step in range(1, 5000)]})
    assert PANEL[0] / 2 < len(points(curve["smooth"])) <= PANEL[0]
