"""Interactions on disk, one file each, so that a stopped command goes on where it was.

    FOLDER/interactions/USER/CASE.json      the interaction, and the key of all it depends on

A file of another key is played again and replaced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rtsam_jax.data.cases import Case
from rtsam_jax.data.json_file import write_json
from rtsam_jax.data.nifti import read_label
from rtsam_jax.data.prepare import Progress
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.scans import preprocessed
from rtsam_jax.evaluation.click_model import ClickModel
from rtsam_jax.evaluation.interactive import interact, open_case
from rtsam_jax.evaluation.simulated_user import User
from rtsam_jax.metrics.interactive import Interaction, PlacedClick
from rtsam_jax.models.text_adapter import TextTable

# Part of every key: raise it where the same settings would give another interaction.
FORMAT = 1


def interaction_key(about: Mapping[str, Any], user: User) -> str:
    """A digest of what an interaction depends on.

    Args:
        about: JSON: the run's config and checkpoint, the case and its files, clicks, seed.
        user: its settings are part of the key.
    """
    parts = {"format": FORMAT, "user": [user.name, dataclasses.asdict(user)], **about}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def interactions(
    model: ClickModel,
    cases: Sequence[Case],
    users: Sequence[User],
    *,
    modality: Mapping[str, str],
    spec: PreprocessSpec,
    text_ids: Mapping[str, int],
    table: TextTable | None,
    keys: Mapping[tuple[str, str], str],
    folder: Path,
    seed: int,
) -> list[Interaction]:
    """Every user on every case, those on disk not again; case by case, users in their order.

    Args:
        cases: with labels; tasks of one scan should stand side by side.
        modality: by task.
        text_ids: prompt by case id.
        table: of the texts, or None.
        keys: of `interaction_key`, by case id and user.
        folder: where they are kept.
        seed: of all that is random about the users.

    Raises:
        IncompleteCase, VolumeError, MissingFile, UnreadableFile: of a case; see `score_cases`.
    """
    paths = {at: folder / "interactions" / at[1] / f"{at[0]}.json" for at in keys}
    found = {at: kept for at, path in paths.items() if (kept := _read(path, keys[at]))}
    if found:
        print(f"{len(found)} of {len(keys)} interactions are there already", flush=True)
    missing = {
        case.id: [user for user in users if (case.id, user.name) not in found] for case in cases
    }
    with Progress(len(keys) - len(found), "played", "interactions") as progress:
        for case, scan in preprocessed([c for c in cases if missing[c.id]], modality, spec):
            assert case.label is not None
            label = read_label(case.label, case.label_value)
            opened = open_case(model, case, scan, label, text_ids[case.id], table)
            for user in missing[case.id]:
                at = case.id, user.name
                found[at] = interact(model, opened, user, seed=seed)
                _write(paths[at], keys[at], found[at])
                progress.add(1)
    return [found[case.id, user.name] for case in cases for user in users]


def _write(path: Path, key: str, interaction: Interaction) -> None:
    content = dataclasses.asdict(interaction)
    # JSON has no NaN.
    content["nsd_2mm"] = [None if math.isnan(x) else x for x in interaction.nsd_2mm]
    write_json(path, {"key": key, "interaction": content})


def _read(path: Path, key: str) -> Interaction | None:
    """What `_write` wrote under the same key; None where that is not there or not readable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        fields = content["interaction"]
        return Interaction(
            **{
                **fields,
                "dice": tuple(fields["dice"]),
                "nsd_2mm": tuple(math.nan if x is None else x for x in fields["nsd_2mm"]),
                "clicks": tuple(
                    PlacedClick(number, tuple(world), positive)
                    for number, world, positive in fields["clicks"]
                ),
            }
        )
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: it is played again
        return None
