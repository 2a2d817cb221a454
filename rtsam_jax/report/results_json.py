"""Everything of a results folder as one JSON document: what the tables round, in full."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rtsam_jax.data.json_file import finite
from rtsam_jax.metrics.case import MEASURES, MORE_MEASURES, CaseMetrics
from rtsam_jax.metrics.strata import size_strata
from rtsam_jax.metrics.summary import ALL_TASKS, TaskSummary, summarise
from rtsam_jax.report.results_tables import Difference

SCHEMA_VERSION = 1


def results_document(
    methods: Mapping[str, Sequence[CaseMetrics]],
    differences: Sequence[Difference],
    *,
    heading: str,
    kind: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    """A document of strict JSON.

    A number that does not exist is null: a distance of a case with an empty mask (its `missed` and
    `both_empty` say which), a spread of one case. In means a missed case counts with its diagonal.
    """
    document = {
        "schema": SCHEMA_VERSION,
        "heading": heading,
        "kind": kind,
        "notes": list(notes),
        "methods": {
            name: {
                "tasks": {task: _summary(of) for task, of in summarise(cases).items()},
                "strata": {
                    label: _summary(summarise(items)[ALL_TASKS])
                    for label, items in size_strata(cases).items()
                },
                "cases": [_case(item) for item in cases],
            }
            for name, cases in methods.items()
        },
        "differences": [found._asdict() for found in differences],
    }
    return finite(document)


def _summary(of: TaskSummary) -> dict[str, Any]:
    return {
        "n": of.n,
        "n_missed": of.n_missed,
        "n_both_empty": of.n_both_empty,
        "measures": {name: found._asdict() for name, found in of.measures.items()},
        "structures_ml": {name: found._asdict() for name, found in of.structures.items()},
    }


def _case(item: CaseMetrics) -> dict[str, Any]:
    derived = {
        measure: getattr(item, measure)
        for measure in MEASURES + MORE_MEASURES
        if measure not in CaseMetrics.__dataclass_fields__
    }
    return dataclasses.asdict(item) | derived
