"""Cases to batches of crops, in an order that derives from (seed, step) alone.

Sample `n` of a run is a pure function of the config and `n` (grain's random access), and a process
reads its rows of every batch. So a resumed run sees exactly what an uninterrupted one would have
seen, whatever the number of processes before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np
from numpy.random import SeedSequence

from rtsam_jax.data.crops import extract
from rtsam_jax.data.neighbourhood import Neighbourhood
from rtsam_jax.data.sample import Sample
from rtsam_jax.errors import ConfigError

ENDLESS = 2**48  # batches; grain counts lengths in doubles


class PromptIds(NamedTuple):
    """The prompts that training may give a case: rows of the table of texts, or tasks.

    Attributes:
        ids: `[1 + V]` int32; first the task alone, then the wordings to choose from.
        mirrored: the same with left and right swapped; None where a side cannot be swapped.
    """

    ids: np.ndarray
    mirrored: np.ndarray | None


@dataclass(frozen=True)
class Share:
    """Which rows of every batch this process reads: the `index`-th of `count` equal parts."""

    index: int = 0
    count: int = 1


class Plan(NamedTuple):
    """What a row of a batch will be, drawn before anything is read."""

    case_id: int
    part: float  # from 0 to below 1: which of the case's origins
    shift: np.ndarray  # [3] int, voxels
    told: tuple[int, int]  # text id, and mirrored text id or -1
    weight: float = 1.0  # 0: only fills the batch up
    view: int = -1  # see `Sample`


def read_rows(cases: Sequence[Neighbourhood], plans: Sequence[Plan], size: int) -> Sample:
    """Crops of edge `size`, written where they stay: a copy less than stacking them."""
    shape = (len(plans), size, size, size)
    batch = Sample(
        image=np.empty((*shape, 1), np.float32),
        label=np.empty(shape, np.uint8),
        roi=np.empty(shape, np.uint8),
        text_id=np.array([plan.told[0] for plan in plans], np.int32),
        mirrored_text_id=np.array([plan.told[1] for plan in plans], np.int32),
        case_id=np.array([plan.case_id for plan in plans], np.int32),
        weight=np.array([plan.weight for plan in plans], np.float32),
        view=np.array([plan.view for plan in plans], np.int32),
    )
    for row, plan in enumerate(plans):
        case = cases[plan.case_id]
        origin = case.origins[int(plan.part * len(case.origins))] + plan.shift
        extract(case.image, origin, size, case.background, batch.image[row, ..., 0])
        extract(case.label, origin, size, 0, batch.label[row])
        extract(case.roi, origin, size, 0, batch.roi[row])
    return batch


def case_order(
    tasks: Sequence[int] | np.ndarray, seed: int, *, balanced: bool, counted: bool = False
) -> grain.MapDataset:
    """Case indices without end, shuffled anew in every epoch.

    Args:
        tasks: by case.
        balanced: tasks take turns, so that each is met equally often however few its cases are.
        counted: each with how often that case was met before.
    """

    def endless(members: np.ndarray, key: int) -> grain.MapDataset:
        order = grain.MapDataset.source(members.tolist()).seed(key).shuffle().repeat()
        if not counted:
            return order
        return order.map_with_index(lambda at, case: (case, at // len(members)))

    if not balanced:
        return endless(np.arange(len(tasks)), seed)
    of = np.asarray(tasks)
    return grain.MapDataset.mix(
        [
            # Mixed, or task 1 of one seed would be ordered as task 0 of the next.
            endless(
                np.flatnonzero(of == task), int(SeedSequence([seed, task]).generate_state(1)[0])
            )
            for task in np.unique(of).tolist()
        ]
    )


def draw_plan(
    case_id: int,
    told: PromptIds,
    rng: np.random.Generator,
    *,
    jitter: int,
    margin: int,
    record_dropout: float,
) -> Plan:
    """One crop of a case, drawn before anything is read.

    It lies at one of the case's origins, picked at random, shifted by up to `jitter` voxels along
    each axis. It is told one of the case's wordings, or with probability `record_dropout` the task
    alone.
    """
    wording = rng.integers(1, len(told.ids))
    chosen = 0 if rng.random() < record_dropout else wording
    mirrored = -1 if told.mirrored is None else int(told.mirrored[chosen])
    shift = rng.integers(-jitter, jitter + 1, size=3) - margin
    return Plan(case_id, rng.random(), shift, (int(told.ids[chosen]), mirrored))


def in_batches(
    plans: grain.MapDataset,
    read: Callable[[list[Any]], Any],
    *,
    batch_size: int,
    share: Share = Share(),  # noqa: B008  # immutable
    rows: int = 0,
    samples: int = ENDLESS,
) -> grain.MapDataset:
    """Random-access batches, this process's rows of them.

    What a batch holds depends on neither devices nor processes. Rows that only fill it up to a
    number that divides over them have weight 0, and so have those after the run's last sample.

    Args:
        plans: of samples, in their order: `Plan`, or another named tuple with a `weight`.
        read: a batch of as many rows as it is given plans.
        batch_size: samples per batch, of all processes together.
        share: which rows of a batch to read.
        rows: per batch, of all processes together; 0: `batch_size`.
        samples: of the whole run.

    Raises:
        ConfigError: the rows hold no batch, or do not divide over the processes.
    """
    rows = rows or batch_size
    if rows < batch_size or rows % share.count:
        raise ConfigError(
            f"{rows} rows per batch cannot hold config.batch_size {batch_size} in {share.count} "
            "equal parts; use the next multiple of them."
        )
    own = rows // share.count

    def planned(number: int, row: int) -> Any:
        at = number * batch_size + row % batch_size
        counts = row < batch_size and at < samples
        return plans[at]._replace(weight=float(counts))

    def batch(number: int) -> Any:
        return read([planned(number, share.index * own + row) for row in range(own)])

    return grain.MapDataset.range(ENDLESS).map(batch)


def training_batches(
    cases: Sequence[Neighbourhood],
    prompts: Sequence[PromptIds],
    *,
    size: int,
    jitter: int,
    batch_size: int,
    seed: int,
    margin: int = 0,
    record_dropout: float = 0.0,
    balanced_tasks: Sequence[int] | np.ndarray | None = None,
    share: Share = Share(),  # noqa: B008  # immutable
    rows: int = 0,
    samples: int = ENDLESS,
) -> grain.MapDataset:
    """`in_batches` of crops as `draw_plan` draws them; an epoch visits every case once.

    Args:
        cases: read one at a time.
        prompts: what each case may be told.
        size: edge of the model's crop in voxels.
        margin: voxels that `data.augment` needs around the crop.
        balanced_tasks: by case, to draw every task equally often; None: cases as they are.

    Raises:
        ConfigError: see `in_batches`.
    """

    def plan(case_id: int, rng: np.random.Generator) -> Plan:
        told = prompts[case_id]
        return draw_plan(
            case_id, told, rng, jitter=jitter, margin=margin, record_dropout=record_dropout
        )

    tasks = np.zeros(len(cases)) if balanced_tasks is None else balanced_tasks
    order = case_order(tasks, seed, balanced=balanced_tasks is not None)
    plans = order.seed(seed).random_map(plan)

    def read(chosen: Sequence[Plan]) -> Sample:
        return read_rows(cases, chosen, size + 2 * margin)

    return in_batches(plans, read, batch_size=batch_size, share=share, rows=rows, samples=samples)


def batches_from(
    dataset: grain.MapDataset, start: int, stop: int, threads: int = 2
) -> Iterator[Any]:
    """Batches `start .. stop - 1`, read ahead by threads, a few at a time."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    return iter(dataset[start:stop].to_iter_dataset(options))
