"""Command: writes the phantom data set, or draws a picture of it.

python -m rtsam_jax.data.phantom OUT [--cases N] [--seed S] [--twins]
python -m rtsam_jax.data.phantom --picture FILE.png [--seed S] [--first INDEX] [--twins]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rtsam_jax.data.phantom.dataset import build
from rtsam_jax.data.phantom.picture import draw
from rtsam_jax.errors import run_command


def main() -> None:
    """Parses the command line and runs it."""
    parser = argparse.ArgumentParser(
        prog="python -m rtsam_jax.data.phantom",
        description="Writes a data set of synthetic head phantoms, or draws three of its cases.",
    )
    parser.add_argument("out", nargs="?", type=Path, help="folder to make")
    parser.add_argument("--cases", type=int, default=60, help="number of cases (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the data set (0)")
    parser.add_argument(
        "--twins", action="store_true", help="with look-alikes that only the record tells apart"
    )
    parser.add_argument("--picture", type=Path, help="PNG to draw, one row per task")
    parser.add_argument("--first", type=int, default=0, help="first case of the picture (0)")
    arguments = parser.parse_args()
    if (arguments.out is None) == (arguments.picture is None):
        parser.error("name either a folder OUT or --picture FILE")
    if arguments.picture is not None:
        draw(arguments.picture, seed=arguments.seed, first=arguments.first, twins=arguments.twins)
    else:
        build(arguments.out, cases=arguments.cases, seed=arguments.seed, twins=arguments.twins)


if __name__ == "__main__":
    run_command(main)
