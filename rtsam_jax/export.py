"""`python -m rtsam_jax.export --checkpoint DIR --out DIR [--platforms cpu cuda tpu]`.

Writes a trained model as programs that JAX runs without this package: encoder and decoder in
StableHLO, for any number of crops, and their parameters as an npz. docs/export.md loads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rtsam_jax.errors import run_command
from rtsam_jax.prediction.exported import PLATFORMS, TEXTS, write_export
from rtsam_jax.prediction.trained import load_trained


def run(arguments: argparse.Namespace) -> None:
    """Exports the newest checkpoint, and prints what was written."""
    trained = load_trained(arguments.checkpoint, language_model=arguments.language_model)
    # A model that was named must be there; one that is only remembered may have stayed behind.
    place = trained.cfg.prompt.language_model
    texts = bool(arguments.language_model) or Path(place).is_dir()
    platforms = [*dict.fromkeys(arguments.platforms)]
    write_export(trained, arguments.out, platforms=platforms, texts=texts)
    for warning in trained.warnings:
        print(f"warning: {warning}")
    if trained.about.text_width and not texts:
        print(
            f"warning: the language model {place} is not here, so {TEXTS} is left out; name its "
            f"folder with --language-model."
        )
    print(f"{arguments.out}: step {trained.step}, for {', '.join(platforms)}")
    for file in sorted(arguments.out.iterdir()):
        print(f"  {file.name:<20} {file.stat().st_size / 1e6:10.3f} MB")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="python -m rtsam_jax.export", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of a run, or a copy of it")
    add("--out", type=Path, required=True, help="folder to make")
    add("--platforms", nargs="+", choices=PLATFORMS, default=["cpu", "cuda", "tpu"])
    add("--language-model", default="", help="where the run's language model lies now")
    run(parser.parse_args(argv))


if __name__ == "__main__":
    run_command(main)
