"""Cases by the size of what was to be found: a mean over all sizes hides the small lesions.

The edges are fixed, so that tables of different runs and datasets can be read side by side: 1, 5
and 20 mL are balls of 12, 21 and 34 mm across. An empty truth is a stratum of its own.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from rtsam_jax.metrics.case import CaseMetrics

EDGES_ML = (1.0, 5.0, 20.0)  # of the truth's volume; an edge belongs to the larger stratum
STRATA = ("empty truth", "below 1 mL", "1 to 5 mL", "5 to 20 mL", "20 mL and more")


def size_strata(cases: Sequence[CaseMetrics]) -> dict[str, list[CaseMetrics]]:
    """The cases of each of `STRATA` that has any, small ones first."""
    groups: dict[str, list[CaseMetrics]] = {name: [] for name in STRATA}
    for case in cases:
        volume = case.volume_truth_ml
        groups[STRATA[1 + bisect.bisect(EDGES_ML, volume) if volume else 0]].append(case)
    return {name: group for name, group in groups.items() if group}
