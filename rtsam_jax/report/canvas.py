"""How figures are drawn here: the palette, and saving without display or global state."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rtsam_jax.report.files import written_whole

# Okabe and Ito's palette: it stays apart under the common kinds of colour blindness.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#999999"
WHITE = "#FFFFFF"

DPI = 160


def save(figure: Figure, out: Path) -> None:
    """Writes the figure as PNG, whole or not at all."""
    FigureCanvasAgg(figure)
    with written_whole(out) as beside:
        # Without the software's version in it, the same figure is the same file.
        figure.savefig(beside, dpi=DPI, metadata={"Software": None})
