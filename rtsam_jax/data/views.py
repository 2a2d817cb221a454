"""Fixed views of training cases: what is drawn of each, and their records on disk.

    VIEWS/SETTINGS/settings.json    what the folder's name is the digest of
    VIEWS/SETTINGS/...              shards (rtsam_jax.data.shards): one record per view

A view is a function of (config.seed, the case's id, its number among the case's views). Its record
is everything of it up to the clicks, as `rtsam_jax.training.kept_views` makes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rtsam_jax.config import AugmentConfig, ExperimentConfig
from rtsam_jax.data.augment import margin
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.packing import pack, pack_mask, unpack, unpack_mask
from rtsam_jax.data.pipeline import Plan, PromptIds, case_order, draw_plan
from rtsam_jax.data.sample import View
from rtsam_jax.data.shards import Place, ShardReader, read_places
from rtsam_jax.data.whole_file import Kept

# Part of every key: raise it where the same files and settings would give another record.
FORMAT = 1
ENCODED = Kept("encoded views", "encoded", "views.folder")


def views_root(cfg: ExperimentConfig) -> epath.Path:
    """Where a config's encoded views are kept, of all settings."""
    return epath.Path(cfg.views.folder) if cfg.views.folder else cache_root(cfg) / "views"


class Turn(NamedTuple):
    """A view whose turn it is in a batch."""

    case_id: int
    number: int  # among the views of its case
    weight: float = 1.0  # 0: only fills the batch up


@dataclass(frozen=True)
class FixedViews:
    """What every view shows, drawn before anything is read.

    Attributes:
        names: ids of the cases.
        prompts: by case, what it may be told.
        per_case: views of each.
        margin: voxels that `data.augment` needs around a crop.
    """

    names: Sequence[str]
    prompts: Sequence[PromptIds]
    per_case: int
    seed: int
    jitter: int
    margin: int
    record_dropout: float

    @classmethod
    def from_config(
        cls, cfg: ExperimentConfig, names: Sequence[str], prompts: Sequence[PromptIds], size: int
    ) -> FixedViews:
        """Takes the fields from `cfg`.

        Args:
            size: edge of the model's crop in voxels.
        """
        return cls(
            names=names,
            prompts=prompts,
            per_case=cfg.views.per_case,
            seed=cfg.seed,
            jitter=cfg.data.jitter,
            margin=margin(cfg.augment, size),
            record_dropout=cfg.prompt.dropout,
        )

    def seed_of(self, case_id: int, number: int) -> int:
        """Of all that a view draws: 31 bits, by the case's id, which other cases cannot move."""
        what = json.dumps([self.seed, self.names[case_id], number])
        return int.from_bytes(hashlib.sha256(what.encode()).digest()[:4], "little") >> 1

    def plan(self, turn: Turn) -> Plan:
        """A view's crop and its wording."""
        seed = self.seed_of(turn.case_id, turn.number)
        plan = draw_plan(
            turn.case_id,
            self.prompts[turn.case_id],
            np.random.default_rng(seed),
            jitter=self.jitter,
            margin=self.margin,
            record_dropout=self.record_dropout,
        )
        return plan._replace(weight=turn.weight, view=seed)

    def turns(self, tasks: Sequence[int] | np.ndarray | None = None) -> grain.MapDataset:
        """Without end: cases in the order of `case_order`, the n-th time with view n modulo K.

        So K epochs show every view once, and no view a second time before all were shown.

        Args:
            tasks: by case, to draw every task equally often; None: cases as they are.
        """
        of = np.zeros(len(self.names)) if tasks is None else tasks
        order = case_order(of, self.seed, balanced=tasks is not None, counted=True)
        return order.map(lambda met: Turn(met[0], met[1] % self.per_case))

    def by_position(self) -> FixedViews:
        """The same views, told positions in a case's wordings in place of rows of a run's table.

        A row changes with the other cases of a run, so a record on disk must not name it.
        """

        def positions(told: PromptIds) -> PromptIds:
            ids = np.arange(len(told.ids), dtype=np.int32)
            return PromptIds(ids, None if told.mirrored is None else ids + len(ids))

        return dataclasses.replace(self, prompts=[positions(told) for told in self.prompts])


@dataclass(frozen=True)
class ViewSettings:
    """What encoded views depend on besides their case."""

    encoder: str  # digest of sizes, weights and arithmetic of the image encoder
    dtype: str  # of the embedding on disk
    seed: int
    jitter: int
    record_dropout: float
    box: bool
    box_jitter: int
    augment: AugmentConfig

    @classmethod
    def from_config(cls, cfg: ExperimentConfig, encoder: str) -> ViewSettings:
        """Takes the other fields from `cfg`; those of the prepared cases are in their keys."""
        return cls(
            encoder=encoder,
            dtype=cfg.views.cache,
            seed=cfg.seed,
            jitter=cfg.data.jitter,
            record_dropout=cfg.prompt.dropout,
            box=cfg.prompt.box,
            box_jitter=cfg.dose.box_jitter,
            augment=cfg.augment,
        )

    def to_json(self) -> str:
        """For people, and for the name of the folder."""
        # Another jax may compute other digits.
        about = {"format": FORMAT, "jax": jax.__version__, **dataclasses.asdict(self)}
        return json.dumps(about, indent=1, sort_keys=True)

    @property
    def digest(self) -> str:
        """Of the settings and the format."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def view_keys(
    settings: ViewSettings, views: FixedViews, scans: Sequence[tuple[str, int]]
) -> list[list[str]]:
    """The key of each record, by case and number.

    How many views a case has is no part of it, nor are other cases or what a wording says: more
    views, more cases and mended records keep what is there.

    Args:
        scans: by case, `PreparedCases.keys`.
    """
    digest = settings.digest

    def key(case_id: int, number: int) -> str:
        told = views.prompts[case_id]
        wordings = [len(told.ids), told.mirrored is not None]
        what = [digest, *scans[case_id], views.names[case_id], wordings, number]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    return [[key(case, n) for n in range(views.per_case)] for case in range(len(views.names))]


def encode(view: View, row: int, *, dtype: str, seed: int) -> bytes:
    """One record: a row of a batch on the host, made `by_position`.

    Args:
        dtype: of the embedding in it, which is rounded here, to nearest even.
        seed: of the view.
    """
    box = None if view.box is None else np.asarray(view.box[row])
    about = {
        "side": view.label.shape[1],
        "label": pack_mask(view.label[row]),
        "roi": pack_mask(view.roi[row]),
        "box": box,
        "box_valid": None if box is None else bool(view.box_valid[row]),
        "wording": int(view.text_id[row]),
        "seed": seed,
    }
    return pack(view.embedding[row].astype(jnp.dtype(dtype)), about)


def find_views(folder: epath.Path, *, mend: bool = False) -> dict[str, Place]:
    """The records in a folder, by key.

    Args:
        mend: remove shards that are damaged; only where `shards.only_one` holds.
    """
    return {place.key: place for place in read_places(folder, Place, ENCODED, mend=mend)}


class StoredViews:
    """Encoded views on disk; whatever their number, memory holds those in use.

    Args:
        places: by case and number.
        prompts: by case: the rows of this run's table that a record's wording stands for.
        copies: folder for shards that lie in cloud storage, fetched when they are first read.
    """

    def __init__(
        self, places: Sequence[Sequence[Place]], prompts: Sequence[PromptIds], copies: Path
    ):
        self._places = places
        self._told = [
            told.ids if told.mirrored is None else np.concatenate([told.ids, told.mirrored])
            for told in prompts
        ]
        self._reader = ShardReader(copies, ENCODED)

    def read(self, turns: Sequence[Turn]) -> View:
        """A batch of them, on the host; the embedding in the type it was stored in.

        Raises:
            CacheDamaged: a file is not what was written.
        """
        places = [self._places[turn.case_id][turn.number] for turn in turns]
        embeddings, about = zip(*map(unpack, map(self._reader.read, places)), strict=True)

        def masks(name: str) -> np.ndarray:
            return np.stack([unpack_mask(each[name], (each["side"],) * 3) for each in about])

        boxed = about[0]["box"] is not None
        return View(
            embedding=np.stack(embeddings),
            label=masks("label"),
            roi=masks("roi"),
            box=np.stack([each["box"] for each in about]) if boxed else None,
            box_valid=np.array([each["box_valid"] for each in about]) if boxed else None,
            text_id=np.array(
                [
                    self._told[turn.case_id][each["wording"]]
                    for turn, each in zip(turns, about, strict=True)
                ],
                np.int32,
            ),
            case_id=np.array([turn.case_id for turn in turns], np.int32),
            weight=np.array([turn.weight for turn in turns], np.float32),
        )
