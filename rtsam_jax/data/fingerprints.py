"""What cases are: their ids and records, and the contents of their files."""

from __future__ import annotations

import json
from collections.abc import Sequence

from etils import epath

from rtsam_jax.data.cases import Case
from rtsam_jax.data.content import ContentHashes


def fingerprints(cases: Sequence[Case], cache: epath.Path) -> list[str]:
    """A line of JSON per case: id, task, record, digests of its files.

    A run that is resumed has to find those of its training cases again, and measures are of those
    that were scored.

    Args:
        cache: of `cache_root`; it remembers what files held.

    Raises:
        MissingFile, UnreadableFile: of a case's file.
    """
    digests = ContentHashes(cache).digests(path for case in cases for path in case.files)

    def line(case: Case) -> str:
        held = [digests.get(f) if f else None for f in (case.image, case.dose, case.label)]
        what = [case.id, case.task, *held, case.label_value, case.record]
        return json.dumps(what, sort_keys=True)

    return [line(case) for case in cases]
