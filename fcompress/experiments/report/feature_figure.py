"""Fig. 5: images of units of a thin and a wide network side by side, and the tests."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fcompress.experiments.measures.interpretability import QUANTITIES, Comparison, sheet_images

GAP = 1  # white pixels between two images
HEADINGS = (
    "stage",
    "quantity",
    "median thin",
    "median wide",
    "effect",
    "p",
    "p (Holm)",
    "between seeds",
)


def figure(
    thin: Mapping[str, Any],
    wide: Mapping[str, Any],
    comparison: Comparison,
    labels: tuple[str, str] = ("thin", "wide"),
    title: str = "",
) -> Figure:
    """Draw Fig. 5 for every stage, with a table of the tests below.

    Args:
        thin: Record of `visualise`, of one thin network.
        wide: Of one wide network.
        comparison: Of all thin and all wide networks.
        labels: Above the images of each.
        title: Above the picture.
    """
    stages = list(zip(thin["stages"], wide["stages"], strict=True))
    table_height = 0.24 * (len(comparison.tests) + 1)
    drawn = Figure(figsize=(12, 1.0 * len(stages) + table_height + 1.0), layout="constrained")
    heights = [1.0 * len(stages) + 0.4, table_height]
    above, below = drawn.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    panels = above.subplots(len(stages), 2, squeeze=False)
    for row, (pair, axes_pair) in enumerate(zip(stages, panels, strict=True)):
        for label, stage, axes in zip(labels, pair, axes_pair, strict=True):
            axes.imshow(_row(sheet_images(stage)), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            dead = f", {len(stage['dead'])} dead" if stage["dead"] else ""
            drawn_of = f"{len(stage['drawn'])} of {stage['units']} units{dead}"
            heading = f"{label}\n{drawn_of}" if row == 0 else drawn_of
            axes.set_title(heading, fontsize=8)
        axes_pair[0].set_ylabel(stages[row][0]["layer"], fontsize=8)
    axes = below.subplots()
    axes.axis("off")
    rows = [
        [
            test.stage,
            test.quantity,
            f"{test.thin:.3g}",
            f"{test.wide:.3g}",
            f"{test.test.effect:+.2f}",
            f"{test.test.p:.2g}",
            f"{test.p:.2g}",
            "" if test.between_seeds is None else f"{test.between_seeds:.2f}",
        ]
        for quantity in QUANTITIES
        for test in comparison.tests
        if test.quantity == quantity
    ]
    if rows:
        table = axes.table(rows, colLabels=HEADINGS, loc="center", cellLoc="center")
        table.auto_set_font_size(False)
        table.set_fontsize(8)
    counts = "{} thin and {} wide networks".format(*comparison.networks)
    note = "total variation; effect above 0: the wide ones' is larger (rank-biserial)"
    note += "; between seeds: largest effect among networks of one width"
    drawn.suptitle("\n".join(part for part in (title, f"{counts}; {note}") if part), fontsize=9)
    return drawn


def _row(images: np.ndarray) -> np.ndarray:
    """Images [n, H, W, 3] side by side, with white between them."""
    count, height, width, _ = images.shape
    row = np.ones((height, max(1, count * (width + GAP) - GAP), 3))
    for place, image in enumerate(images):
        left = place * (width + GAP)
        row[:, left : left + width] = image
    return row
