"""How figures are drawn here: the palette, and saving without display or global state."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rtsam_jax.report.files import written_whole

# Okabe and Ito's palette: it stays apart under the common kinds of colour blindness.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#999999"
WHITE, YELLOW = "#FFFFFF", "#F0E442"

DPI = 160
JPEG_DPI, JPEG_QUALITY = 128, 72  # of pictures inside a page: hundreds in one file


def save(figure: Figure, out: Path) -> None:
    """Writes the figure as PNG, whole or not at all."""
    FigureCanvasAgg(figure)
    with written_whole(out) as beside:
        # Without the software's version in it, the same figure is the same file.
        figure.savefig(beside, dpi=DPI, metadata={"Software": None})


def jpeg(figure: Figure) -> bytes:
    """The figure as JPEG, colours at full resolution, so that thin coloured lines stay crisp."""
    FigureCanvasAgg(figure)
    out = BytesIO()
    options = {"quality": JPEG_QUALITY, "subsampling": 0, "optimize": True}
    figure.savefig(out, format="jpeg", dpi=JPEG_DPI, pil_kwargs=options)
    return out.getvalue()
