"""Prepared scans on disk or in cloud storage: shards, found by the key of a scan.

    CACHE/files.json                    content hashes, remembered (rtsam_jax.data.content)
    CACHE/SETTINGS/settings.json        what the folder's name is the digest of
    CACHE/SETTINGS/...                  shards (rtsam_jax.data.shards): one record per scan, as
                                        rtsam_jax.data.neighbourhood encodes it
    CACHE/views/                        encoded views (rtsam_jax.data.views)

Changed settings or files are other keys (`rtsam_jax.data.scans`), and what they leave behind is
never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data import shards
from rtsam_jax.data.scans import CacheSettings
from rtsam_jax.data.whole_file import PREPARED


@dataclass(frozen=True)
class Entry(shards.Place):
    """Where a scan's record is, and what is known of it.

    Attributes:
        views: per label its `voxels` on the model grid, or its `failure`: code and message.
        about: whole-volume statistics: shape, spacing, mean, std, dose levels.
    """

    views: list[dict[str, Any]]
    about: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether one of its labels could not be used."""
        return any("failure" in view for view in self.views)


def cache_root(cfg: ExperimentConfig) -> epath.Path:
    """Where a config's prepared cases are kept, of all settings."""
    return epath.Path(cfg.data.cache or Path(cfg.data.dataset) / "prepared")


def settings_folder(cache: epath.Path, settings: CacheSettings) -> epath.Path:
    """Makes and describes the folder of these settings.

    Raises:
        NotWritable: the system refuses.
    """
    folder = cache / settings.digest[: shards.DIGITS]
    return shards.make_folder(folder, settings.to_json(), PREPARED)


def read_index(folder: epath.Path, *, mend: bool = False) -> dict[str, Entry]:
    """The entries of every whole shard, by key; of two with one key, one that did not fail.

    Args:
        mend: remove shards that are damaged, so that their scans are prepared again; only where
            `only_one` holds.
    """
    found: dict[str, Entry] = {}
    for entry in shards.read_places(folder, Entry, PREPARED, mend=mend):
        if entry.key not in found or found[entry.key].failed:
            found[entry.key] = entry
    return found


def write_shard(folder: epath.Path, records: Sequence[tuple[bytes, dict[str, Any]]]) -> None:
    """Writes records, each with `key`, `views` and `about` of its entry.

    Raises:
        NotWritable: no space, no permission.
    """
    shards.write_shard(folder, records, PREPARED)


def only_one(folder: epath.Path) -> AbstractContextManager[None]:
    """Lets one command at a time prepare into a folder on a disk; others wait for it."""
    return shards.only_one(folder, PREPARED)
