"""Draw the pictures of the tutorials: python docs/pictures/draw.py [FOLDER].

Needs latticeq with its extra ``plot``. Each function below is one picture and returns a figure; the
file has the function's name with hyphens, beside this one or in FOLDER. Whatever can be is computed
by latticeq; the lattices in the plane, which it has not, are written out here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Polygon
from numpy.typing import NDArray

from latticeq.codes.nested import NestedCode
from latticeq.lattices import e8
from latticeq.quantizers.betas import tuned_betas
from latticeq.quantizers.limits import distortion_limit
from latticeq.transforms.rotation import Rotation

Array = NDArray[np.float64]

INK, SOFT, GREEN, RED, BLUE = "#222222", "#b8b8b8", "#0b6e4f", "#c44536", "#3a6ea5"

SQUARE = np.eye(2)
CHECKERBOARD = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
HEXAGONAL = np.array([[1.0, 0.0], [0.5, np.sqrt(3) / 2]]) * np.sqrt(2 / np.sqrt(3))
"""Bases of Z2, D2 and A2, one vector a row, all with cells of area 1."""

STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "latticeq", "font.size": 10}


def lattice(basis: Array, reach: int = 8) -> Array:
    """Return the points with coefficients from -reach to reach."""
    return np.array([*product(range(-reach, reach + 1), repeat=2)]) @ basis


def closest(points: Array, x: Array) -> NDArray[np.intp]:
    """Return for each row of x which of the points is closest."""
    return np.asarray(np.square(x[:, None] - points).sum(axis=2).argmin(axis=1))


def clipped(corners: Array, normal: Array, limit: float) -> Array:
    """Return the part of a convex polygon with normal . x <= limit."""
    kept: list[Array] = []
    beyond = corners @ normal - limit
    for i in range(len(corners)):
        a, b = corners[i - 1], corners[i]
        if (beyond[i - 1] > 0) != (beyond[i] > 0):
            kept.append(a + (b - a) * beyond[i - 1] / (beyond[i - 1] - beyond[i]))
        if beyond[i] <= 0:
            kept.append(b)
    return np.array(kept).reshape(-1, 2)


def cell(basis: Array) -> Array:
    """Return the corners of the Voronoi cell of the origin."""
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * 9
    for v in lattice(basis, 2):
        if v.any():
            corners = clipped(corners, v, v @ v / 2)
    return corners


def area(corners: Array) -> float:
    """Return the area of a polygon."""
    x, y = corners.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def second_moment(corners: Array) -> float:
    """Return the mean square of a coordinate over a polygon of area 1 around the origin."""
    total = 0.0
    for a, b in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        triangle = abs(a[0] * b[1] - a[1] * b[0]) / 2
        total += triangle * (a @ a + b @ b + a @ b) / 6
    return total / 2


def cells() -> Figure:
    """Draw three lattices of the plane and the cells that their points own."""
    figure, axes = panels(3, 3.4)
    bases = {"Z²": SQUARE, "D2": CHECKERBOARD, "A2": HEXAGONAL}
    for axis, (name, basis) in zip(axes, bases.items(), strict=True):
        corners, points = cell(basis), lattice(basis)
        plain(axis, 2.2)
        for point in points[np.abs(points).max(axis=1) < 3.2]:
            axis.add_patch(Polygon(corners + point, facecolor="none", edgecolor=SOFT, linewidth=1))
        axis.add_patch(Polygon(corners, facecolor="#dbeee6", edgecolor=GREEN, linewidth=1.5))
        dots(axis, points, INK, 3)
        axis.set_title(f"{name}: second moment {second_moment(corners):.4f}")
    return figure


def e8_plane() -> Figure:
    """Draw what a plane through E8 cuts out of the cells of its points."""
    rng = np.random.default_rng(11)
    plane = np.linalg.qr(rng.normal(size=(8, 2)))[0].T
    half = 2.2
    line = np.linspace(-half, half, 220)
    grid = np.array([*product(line, line)]) @ plane
    found = np.unique(e8.closest_point(grid), axis=0)
    figure, (axis,) = panels(1, 5)
    shades = np.linalg.norm(found - (found @ plane.T) @ plane, axis=1)
    for point, away in zip(found, shades, strict=True):
        corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * half
        for root in e8.roots():  # (x - p) . r <= 1
            corners = clipped(corners, plane @ root, 1 + point @ root)
            if len(corners) < 3:
                break
        else:
            shade = (0.55 + 0.4 * away, 0.85 + 0.1 * away, 0.75 + 0.2 * away)
            colour = tuple(np.clip(shade, 0, 1))
            axis.add_patch(Polygon(corners, facecolor=colour, edgecolor=INK, linewidth=0.7))
    plain(axis, half)
    axis.set_title("a plane through E8, shaded by how near points are to it")
    return figure


def nested() -> Figure:
    """Draw a nested code in the plane, and as many points in a box."""
    q, basis = 6, HEXAGONAL
    figure, axes = panels(2, 4.6)
    points, corners = lattice(basis, 16), cell(basis) * q
    coarse = lattice(basis, 3) * q
    nudge = np.array([1e-4, 2.3e-4])  # the tie rule
    inside = closest(coarse, points + nudge) == closest(coarse, np.zeros((1, 2)))[0]
    coefficients = np.rint(points @ np.linalg.inv(basis)).astype(int) % q
    for axis, chosen, outline in (
        (axes[0], inside, corners),
        (axes[1], (np.abs(points - 0.01) < q / 2).all(axis=1), box(q)),
    ):
        plain(axis, 5.6)
        dots(axis, points[~chosen], SOFT, 2.5)
        axis.add_patch(Polygon(outline, facecolor="none", edgecolor=GREEN, linewidth=1.5))
        dots(axis, points[chosen], GREEN, 5)
        gaussian = np.random.default_rng(3).normal(size=(250, 2)) * q / 5.5
        dots(axis, gaussian, BLUE, 1.5)
    for mark, digits in (("^", (1, 2)), ("s", (4, 5))):
        same = (coefficients == digits).all(axis=1)
        axes[0].plot(
            *points[same].T, mark, color=RED, markersize=9, fillstyle="none", markeredgewidth=1.5
        )
    axes[0].set_title(f"A2 / {q} A2: {inside.sum()} codewords")
    axes[1].set_title("A2 cut to a box of the same area")
    return figure


def box(width: float) -> Array:
    """Return the corners of a square."""
    return np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * width / 2


def union() -> Figure:
    """Draw one code at three scales, and which scale blocks choose."""
    q, basis, scales = 6, HEXAGONAL, (0.55, 0.95, 1.7)
    figure, axes = panels(2, 4.6)
    points = lattice(basis, 16)
    coarse = lattice(basis, 3) * q
    nudge = np.array([1e-4, 2.3e-4])
    code = points[closest(coarse, points + nudge) == closest(coarse, np.zeros((1, 2)))[0]]
    colours = (GREEN, BLUE, RED)
    plain(axes[0], 6.2)
    for scale, colour in zip(scales, colours, strict=True):
        axes[0].add_patch(Polygon(cell(basis) * q * scale, facecolor="none", edgecolor=colour))
        dots(axes[0], code * scale, colour, 2 + 1.6 * scale)
    axes[0].set_title("the code at three scales")
    blocks = np.random.default_rng(5).normal(size=(500, 2)) * 1.7
    errors = [np.square(blocks[:, None] - code * s).sum(axis=2).min(axis=1) for s in scales]
    chosen = np.argmin(errors, axis=0)
    plain(axes[1], 6.2)
    for index, colour in enumerate(colours):
        dots(axes[1], blocks[chosen == index], colour, 2.5)
    axes[1].set_title("Gaussian blocks, by the scale of least error")
    return figure


def distortion_rate() -> Figure:
    """Draw the error of nested codes against their rate, beside the limit and plain grids."""
    rng = np.random.default_rng(0)
    blocks = rng.normal(size=(1 << 14, 8)).astype(np.float32)
    ratios = (4, 6, 8, 12, 16, 24, 32)
    figure, (axis,) = panels(1, 5, 4)
    curve = np.linspace(1.9, 5.4, 50)
    axis.plot(curve, [distortion_limit(r) for r in curve], color=INK, label="limit 2^(−2R)")
    for k, colour in ((1, BLUE), (4, GREEN)):
        codes = [NestedCode(q, tuned_betas(q, k)) for q in ratios]
        errors = [np.square(blocks - code.encode_decoded(blocks)[2]).mean() for code in codes]
        rates = [code.rate for code in codes]
        axis.plot(rates, errors, "o-", color=colour, markersize=4, label=f"E8 / qE8, k = {k}")
    errors = [uniform_error(blocks.ravel(), q) for q in ratios]
    axis.plot(
        np.log2(ratios), errors, "s-", color=RED, markersize=4, label="uniform grid, q levels"
    )
    axis.set_yscale("log")
    axis.set_xlabel("bits an entry R")
    axis.set_ylabel("mean squared error, entries of variance 1")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(True, which="both", linewidth=0.3)
    axis.legend(frameon=False)
    return figure


def uniform_error(x: NDArray[np.float32], levels: int) -> float:
    """Return the error of the best symmetric uniform grid of so many levels."""
    top = (levels - 1) / 2
    steps = np.linspace(3, 10, 60) / levels
    grids = (step * np.clip(np.rint(x / step - 0.5) + 0.5, -top, top) for step in steps)
    return min(float(np.square(x - values).mean()) for values in grids)


def rotation() -> Figure:
    """Draw a row with outliers before and after a Hadamard rotation."""
    rng = np.random.default_rng(0)
    n = 576
    row = rng.normal(size=n)
    row[rng.choice(n, 8, replace=False)] *= 12
    row /= np.sqrt(np.mean(row**2))
    rotated = Rotation(n).apply(row)
    figure, axes = panels(2, 3)
    for axis, values, name in ((axes[0], row, "as it is"), (axes[1], rotated, "rotated")):
        column = np.repeat(np.arange(n), 3)  # one path of n strokes, with gaps between them
        strokes = np.stack([np.zeros(n), values.round(2), np.full(n, np.nan)], axis=1)
        axis.plot(column, strokes.ravel(), color=GREEN, linewidth=0.6)
        axis.set_ylim(-12, 12)
        axis.set_xlabel("column")
        axis.set_title(f"a row of weights, {name}")
    axes[0].set_ylabel("in units of its root mean square")
    return figure


def feedback() -> Figure:
    """Draw why the nearest point is not the best where inputs are correlated."""
    hessian = np.array([[1.0, 0.85], [0.85, 1.0]])
    w = np.array([0.44, 0.38])
    nearest = np.rint(w)
    second = np.rint(w[1])
    target = w[0] + (w[1] - second) * hessian[1, 0] / hessian[0, 0]
    better = np.array([np.rint(target), second])
    options = np.array([*product((-1.0, 0.0, 1.0, 2.0), repeat=2)])
    losses = np.einsum("ni,ij,nj->n", options - w, hessian, options - w)
    assert (options[losses.argmin()] == better).all()
    figure, (axis,) = panels(1, 4.6)
    values, vectors = np.linalg.eigh(hessian)
    angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
    for point, colour in ((nearest, RED), (better, GREEN)):
        loss = (point - w) @ hessian @ (point - w)
        width, height = 2 * np.sqrt(loss / values)
        ring = Ellipse((w[0], w[1]), width, height, angle=angle, fill=False, edgecolor=colour)
        axis.add_patch(ring)
    axis.set(xlim=(-1.3, 2.2), ylim=(-1.3, 2.2), autoscale_on=False)
    dots(axis, options, SOFT, 5)
    axis.plot(*w, "x", color=INK, markersize=9)
    axis.annotate("exact", (w[0], w[1]), xytext=(8, 4), textcoords="offset points")
    near: Any = {"textcoords": "offset points", "horizontalalignment": "center"}
    for point, colour, name in ((nearest, RED, "nearest"), (better, GREEN, "with feedback")):
        axis.plot(*point, "o", color=colour, markersize=8)
        axis.annotate(name, (point[0], point[1]), xytext=(0, -22), color=colour, **near)
    axis.annotate(
        "",
        xy=(target, second),
        xytext=(w[0], second),
        arrowprops={"arrowstyle": "->", "color": INK},
    )
    axis.annotate("new target", (target, second), xytext=(-6, 6), fontsize=8, **near)
    axis.set_xlabel("first weight")
    axis.set_ylabel("second weight")
    axis.set_aspect("equal")
    return figure


def panels(count: int, height: float, width: float | None = None) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side, each as wide as high unless a width is given."""
    figure = Figure(figsize=(count * (width or height), height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, count)))


def dots(axis: Axes, points: Array, colour: str, size: float) -> None:
    """Draw the points that are in view; `plain` sets what is."""
    near = points[np.abs(points).max(axis=1) < axis.get_xlim()[1]].round(3)
    axis.plot(near[:, 0], near[:, 1], "o", color=colour, markersize=size, markeredgewidth=0)


def plain(axis: Axes, half: float) -> None:
    """Show the square around the origin, without scales."""
    axis.set(xlim=(-half, half), ylim=(-half, half), autoscale_on=False)
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])


PICTURES: tuple[Callable[[], Figure], ...] = (
    cells,
    e8_plane,
    nested,
    union,
    distortion_rate,
    rotation,
    feedback,
)


def main(folder: Path) -> None:
    """Draw all pictures into a folder."""
    for picture in PICTURES:
        with rc_context(STYLE):
            figure = picture()
            path = folder / f"{picture.__name__.replace('_', '-')}.svg"
            figure.savefig(path, metadata={"Date": None})
        sys.stderr.write(f"{path}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
