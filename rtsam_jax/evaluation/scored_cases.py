"""Which cases a results folder's measures are of, and of which contents: `scored_cases.json`.

Measures of two truths must not stand in one table, so whoever reads some that were found earlier
asks first whether the cases are still the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.cases import Case
from rtsam_jax.data.fingerprints import fingerprints
from rtsam_jax.data.json_file import strict_json, write_json
from rtsam_jax.data.selection import RunData
from rtsam_jax.metrics.case import CaseMetrics

_RECORD = "scored_cases.json"


@dataclass(frozen=True)
class ScoredCases:
    """The cases that are scored, as they are now.

    Attributes:
        digests: of each, its record and its files, by id.
    """

    cases: list[Case]
    digests: dict[str, str]

    @classmethod
    def held_out(cls, cfg: ExperimentConfig, data: RunData) -> ScoredCases:
        """Those of `data.held_out` that have a label.

        Raises:
            MissingFile, UnreadableFile: of a case's file.
            NotWritable: the cache, which remembers what files held, cannot be written.
        """
        cases = [case for case in data.held_out if case.label is not None]
        lines = fingerprints(cases, cache_root(cfg))
        digests = [hashlib.sha256(line.encode()).hexdigest() for line in lines]
        return cls(cases, {case.id: of for case, of in zip(cases, digests, strict=True)})

    def keep(self, results: Path) -> None:
        """Records that the measures in a results folder are of these; to be written last there."""
        write_json(results / _RECORD, self.digests)

    def changed_since(self, results: Path, measured: Sequence[CaseMetrics]) -> list[str]:
        """Ids of cases that came or went since a folder's measures, or changed in any way.

        Of measures by versions before this record it is known only which cases they are of.

        Args:
            measured: what was read from the folder's `cases.csv`.
        """
        before = {of.case: (of.task, of.patient) for of in measured}
        now = {case.id: (case.task, case.patient) for case in self.cases}
        changed = {id for id in before.keys() | now.keys() if before.get(id) != now.get(id)}
        if (kept := _read(results / _RECORD)) is not None:
            changed |= {id for id, digest in self.digests.items() if kept.get(id) != digest}
        return sorted(changed)


def _read(record: Path) -> dict[str, str] | None:
    """None if there is no record; a damaged one vouches for no case."""
    try:
        kept = strict_json(record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
