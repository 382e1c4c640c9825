"""The chart of a result: single runs as dots, medians as bars, on one scale of seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spawning import figures

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ROW_INCHES = 0.55
WIDTH_INCHES = 8
VMW = "#1f6f8b"
OTHERS = "#6b7785"


def draw(data: Mapping[str, Any], path: Path) -> None:
    """Write the chart of a result as SVG.

    matplotlib draws it: it is in every distribution, writes SVG by itself, and chooses ticks and margins; only this needs it.

    Args:
        data: The content of a `--json` file.
        path: The file to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl  # noqa: PLC0415 - the measuring itself does without
    from matplotlib.figure import Figure  # noqa: PLC0415

    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "vmw"})
    drawn = figures.strips(data)
    figure = Figure(figsize=(WIDTH_INCHES, 1.2 + ROW_INCHES * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for place, strip in enumerate(drawn):
        if strip.median is not None:
            axes.barh(place, strip.median, height=0.6, color=VMW if strip.own else OTHERS, zorder=1)
            axes.annotate(f"{strip.median:.1f}", (0, place), (4, 0), textcoords="offset points", va="center", color="white")
        axes.scatter(strip.seconds, [place] * len(strip.seconds), s=14, color="black", zorder=2)
    axes.set_yticks(range(len(drawn)), [strip.label.replace("`", "") for strip in drawn])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds until ssh answers (bars: medians, dots: runs)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})
