"""Which images a run has been trained on, and those that it started from: nobody is scored on them.

RUN/train_images.txt    the first 16 hex digits of each image's SHA-256, a line each, sorted
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from etils import epath

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.cases import Case
from rtsam_jax.data.content import ContentHashes
from rtsam_jax.errors import ConfigError, UnreadableFile
from rtsam_jax.report.files import written_whole
from rtsam_jax.training.model_file import is_run

IMAGES = "train_images.txt"
_DIGITS = 16
_NAMED = 3  # cases that an error names


def write_seen(run: Path, cfg: ExperimentConfig, train: Sequence[Case]) -> None:
    """Writes what a run has seen once it is trained: its own images and its ancestors'.

    Raises:
        MissingFile, UnreadableFile: of an image; of the list of the run that it starts from.
    """
    start = _start(cfg)
    before = None if start is None else read_seen(start)
    seen = {*_digests(train, cache_root(cfg)).values(), *(before or ())}
    with written_whole(run / IMAGES) as beside:
        beside.write_text("".join(f"{digest}\n" for digest in sorted(seen)), encoding="utf-8")


def require_unseen(cfg: ExperimentConfig, held_out: Sequence[Case]) -> None:
    """Raises where the run that `cfg.model.checkpoint` names was trained on a held-out image.

    Weights from elsewhere, and copies of runs without the list, cannot be asked: of these it says
    so, since scores of whom a model was trained on are no scores.

    Raises:
        ConfigError: it was.
        MissingFile, UnreadableFile: of an image, or of the list.
    """
    start = _start(cfg)
    if not held_out or start is None:
        return
    seen = read_seen(start)
    if seen is None:
        print(
            f"{start} has no {IMAGES}: whether it was trained on cases that are "
            "held out here cannot be told",
            flush=True,
        )
        return
    require_not_among(seen, start, held_out, cache_root(cfg))


def require_not_among(
    seen: frozenset[str], run: Path, cases: Sequence[Case], cache: epath.Path
) -> None:
    """Raises `ConfigError` where an image of a case is among those that a run has seen."""
    known = those_among(seen, cases, cache)
    if known:
        raise ConfigError(
            f"{run} was trained on the images of {len(known)} of the {len(cases)} cases that are "
            f"held out ({', '.join(known[:_NAMED])}{', ...' if known[_NAMED:] else ''}), or "
            "started from a run that was, so scores on them would say nothing; hold out others, "
            "or start from a run that never saw them."
        )


def those_among(seen: frozenset[str], cases: Sequence[Case], cache: epath.Path) -> list[str]:
    """Ids of the cases whose image is among those that a run has seen."""
    digests = _digests(cases, cache) if seen else {}
    return [case.id for case in cases if digests.get(case.id) in seen]


def read_seen(run: Path) -> frozenset[str] | None:
    """What `write_seen` wrote; None where there is no list, as in copies and earlier runs.

    Raises:
        UnreadableFile: the list is damaged.
    """
    path = run / IMAGES
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").split()
    if any(len(line) != _DIGITS or not set(line) <= set("0123456789abcdef") for line in lines):
        raise UnreadableFile(
            f"{path} is damaged; bring it back from a copy, or delete it if you know what {run} "
            "was trained on."
        )
    return frozenset(lines)


def _start(cfg: ExperimentConfig) -> Path | None:
    """The run that a config starts from, if it is one."""
    start = Path(cfg.model.checkpoint)
    return start if cfg.model.checkpoint and is_run(start) else None


def _digests(cases: Sequence[Case], cache: epath.Path) -> dict[str, str]:
    """By case, of its image's content."""
    found = ContentHashes(cache).digests(case.image for case in cases)
    return {case.id: found[case.image][:_DIGITS] for case in cases}
