"""Where masks' results may be written, and what an earlier evaluation of masks has left there."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rtsam_jax.data.import_folder import some
from rtsam_jax.data.json_file import strict_json
from rtsam_jax.errors import NotWritable, OutputExists
from rtsam_jax.evaluation.report import RESULTS

FIGURES = "figures"  # beside what `write_results` writes


def picture_name(case: str, task: str) -> str:
    """The file of a case's overlay."""
    return f"{case}_{task}.png"


def require_writable(out: Path, option: str = "--out FOLDER") -> None:
    """Finds out, before hours of work, whether the folder `out` can be written; leaves nothing.

    Args:
        option: of the command, which names another folder.

    Raises:
        NotWritable: the system refuses, or a file lies where a folder should.
    """
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=place).cleanup()
    except OSError as cause:
        raise NotWritable(
            f"{out} cannot be written ({cause.strerror}); name a folder in another place with "
            f"{option}."
        ) from cause


def earlier_pictures(out: Path) -> list[Path]:
    """The overlays that an earlier evaluation of masks has left in `out`.

    Raises:
        OutputExists: `out` holds what such an evaluation does not write.
    """
    names = [path.name for path in out.iterdir()] if out.exists() else []
    if not names:
        return []
    refusal = f"{out} holds {{}}; name another folder with --out."
    if odd := sorted(n for n in names if n not in RESULTS | {FIGURES} and n[0] != "."):
        raise OutputExists(refusal.format(f"{some(odd)}, which no evaluation of masks writes"))
    try:
        methods = strict_json(out / "results.json")["methods"].values()
        pictures = {
            picture_name(case["case"], case["task"])
            for method in methods
            for case in method["cases"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise OutputExists(refusal.format("no results.json of an evaluation")) from cause
    return [path for path in (out / FIGURES).glob("*") if path.name in pictures]
