"""Which images a run has been trained on, and those that it started from: nobody is scored on them.

RUN/train_images.txt    the first 16 hex digits of each image's SHA-256, a line each, sorted; above
                        them `incomplete` where it is not known what an ancestor has seen
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.cases import Case
from rtsam_jax.data.content import ContentHashes
from rtsam_jax.errors import ConfigError, UnreadableFile
from rtsam_jax.report.files import written_whole
from rtsam_jax.training.model_file import is_run

IMAGES = "train_images.txt"
_INCOMPLETE = "incomplete"
_DIGITS = 16
_NAMED = 3  # cases that an error names


class Seen(NamedTuple):
    """What `read_seen` knows.

    Attributes:
        images: digests of those that a run, or one that it started from, was trained on.
        doubt: that there may be others, as a sentence without its full stop; "" where not.
    """

    images: frozenset[str]
    doubt: str


def write_seen(run: Path, cfg: ExperimentConfig, train: Sequence[Case]) -> None:
    """Writes, before its first step, what a run will have seen: its own images and its ancestors'.

    Raises:
        MissingFile, UnreadableFile: of an image; of the list of the run that it starts from.
    """
    start = _start(cfg)
    before = Seen(frozenset(), "") if start is None else read_seen(start)
    seen = sorted({*_digests(train, cache_root(cfg)).values(), *before.images})
    lines = [_INCOMPLETE, *seen] if before.doubt else seen
    with written_whole(run / IMAGES) as beside:
        beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def require_unseen(cfg: ExperimentConfig, held_out: Sequence[Case]) -> None:
    """Raises where the run that `cfg.model.checkpoint` names was trained on a held-out image.

    Of a run without a list, or with an incomplete one, it says so, since scores of whom a model was
    trained on are no scores. Weights that are no run's cannot be asked.

    Raises:
        ConfigError: it was.
        MissingFile, UnreadableFile: of an image, or of the list.
    """
    start = _start(cfg)
    if not held_out or start is None:
        return
    seen = read_seen(start)
    if seen.doubt:
        print(f"warning: {seen.doubt}", flush=True)
    mend = "hold out others, or start from a run that never saw them"
    require_not_among(seen, start, held_out, cache_root(cfg), mend=mend)


def require_not_among(
    seen: Seen, run: Path, cases: Sequence[Case], cache: epath.Path, *, mend: str
) -> None:
    """Raises `ConfigError` where an image of a case is among those that a run has seen.

    Args:
        seen: of `run`.
        run: its folder, for the message.
        cases: that are held out.
        cache: of `cache_root`.
        mend: what to do about it, the end of the message's sentence.
    """
    known = those_among(seen, cases, cache)
    if known:
        raise ConfigError(
            f"{run} was trained on the images of {len(known)} of the {len(cases)} cases that are "
            f"held out ({', '.join(known[:_NAMED])}{', ...' if known[_NAMED:] else ''}), or "
            f"started from a run that was, so scores on them would say nothing; {mend}."
        )


def those_among(seen: Seen, cases: Sequence[Case], cache: epath.Path) -> list[str]:
    """Ids of the cases whose image is among those that a run has seen."""
    digests = _digests(cases, cache) if seen.images else {}
    return [case.id for case in cases if digests.get(case.id) in seen.images]


def read_seen(run: Path) -> Seen:
    """What `write_seen` wrote; of a run without it, as copies and earlier ones are, a doubt alone.

    Raises:
        UnreadableFile: the list is damaged.
    """
    path = run / IMAGES
    doubt = (
        f"{run} has no complete {IMAGES}: whether it, or a run that it started from, was trained "
        "on cases that are held out here cannot be told"
    )
    if not path.is_file():
        return Seen(frozenset(), doubt)
    lines = path.read_text(encoding="utf-8", errors="replace").split()
    whole = lines[:1] != [_INCOMPLETE]
    lines = lines if whole else lines[1:]
    if not lines or any(
        len(line) != _DIGITS or not set(line) <= set("0123456789abcdef") for line in lines
    ):
        raise UnreadableFile(
            f"{path} is damaged; bring it back from a copy, or delete it if you know what {run} "
            "was trained on."
        )
    return Seen(frozenset(lines), "" if whole else doubt)


def _start(cfg: ExperimentConfig) -> Path | None:
    """The run that a config starts from, if it is one."""
    start = Path(cfg.model.checkpoint)
    return start if cfg.model.checkpoint and is_run(start) else None


def _digests(cases: Sequence[Case], cache: epath.Path) -> dict[str, str]:
    """By case, of its image's content."""
    found = ContentHashes(cache).digests(case.image for case in cases)
    return {case.id: found[case.image][:_DIGITS] for case in cases}
