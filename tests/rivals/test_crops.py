"""A rival gets the crops that our model gets, bit by bit; a flip takes its channel along."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import pytest

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.augment import margin
from rtsam_jax.data.pipeline import in_batches, training_batches
from rtsam_jax.data.sample import Sample
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.data.views import FixedViews
from rtsam_jax.models.presets import get_spec
from rtsam_jax.rivals.crops import crop_batches, make_draw, task_channels
from rtsam_jax.text.prompt_set import crop_prompts, prompt_set
from rtsam_jax.training.kept_views import read_crops
from rtsam_jax.training.run import prepare_training
from rtsam_jax.training.step import draw_view, row_keys
from tests.text.tiny_language_model import write_language_model
from tests.tiny import tiny_config

grain.config.update("py_debug_mode", False)

MOVED = {
    "augment__flip_axes": (0, 1),
    "augment__affine": 0.5,
    "augment__noise": 0.5,
    "data__balance": "task",
    "steps": 3,
    "batch_size": 3,
}
SAME = ("image", "label", "roi", "case_id", "weight", "view")
# A task that names no side, and two of one modality that are each other's mirror image.
SIDED = ("orn=the mandible", "ce=the left parotid gland", "crn=the right parotid gland")


def told_by_text(dataset: Path, folder: Path, **fields: Any) -> ExperimentConfig:
    pytest.importorskip("transformers", reason="needs the tokenizers of the extra `text`")
    model = folder / "model"
    if not model.exists():
        write_language_model(model)
    given = {
        "prompt__task": "text",
        "prompt__language_model": str(model),
        "prompt__feature_cache": str(folder / "features"),
        **MOVED,
    }
    return tiny_config(dataset, **(given | fields))


def ours(cfg: ExperimentConfig, data: RunData) -> grain.MapDataset:
    """What our model trains on, as `rtsam_jax.train` puts it together."""
    size = get_spec(cfg.model.preset).image_size
    cases, prompts = prepare_training(cfg, data), prompt_set(cfg, data)
    return training_batches(
        cases,
        [prompts.training[case.id] for case in data.train],
        size=size,
        jitter=cfg.data.jitter,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        margin=margin(cfg.augment, size),
        record_dropout=cfg.prompt.dropout,
        balanced_tasks=cases.task_ids,
        samples=cfg.steps * cfg.batch_size,
    )


def assert_same_crops(a: Sample, b: Sample) -> None:
    for name in SAME:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)


@pytest.mark.parametrize("task", ["embedding", "text"])
def test_the_batches_are_bit_equal_to_ours(task: str, tiny_dataset: Path, tmp_path: Path) -> None:
    if task == "text":
        cfg = told_by_text(tiny_dataset, tmp_path)
    else:
        cfg = tiny_config(tiny_dataset, **MOVED)
    data = load_run_data(cfg)
    theirs, wanted = crop_batches(cfg, data, prepare_training(cfg, data)), ours(cfg, data)
    tasks = {i: data.tasks.index(case.task) for i, case in enumerate(data.train)}
    draw = make_draw(cfg)
    step_draw = jax.jit(
        lambda b, s: draw_view(b, row_keys(cfg, cfg.seed, s, len(b.weight)).view, cfg)
    )
    for step in range(4):  # the last is past the run's end: rows of weight 0
        a, b = theirs[step], wanted[step]
        assert_same_crops(a, b)
        assert a.text_id.tolist() == [tasks[i] for i in a.case_id]
        for found, due in zip(draw(a, step), step_draw(b, np.int32(step)), strict=True):
            if isinstance(found, jax.Array):
                np.testing.assert_array_equal(found, due)
            else:
                np.testing.assert_array_equal(found.label, due.label)
                np.testing.assert_array_equal(found.roi, due.roi)


def test_the_prompts_for_crops_are_as_many_and_as_mirrorable_as_those_that_are_told(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    cfg = told_by_text(tiny_dataset, tmp_path)
    data = load_run_data(cfg)
    told, drawn = prompt_set(cfg, data).training, crop_prompts(cfg, data)
    assert told.keys() == drawn.keys() == {case.id for case in data.train}
    for case, prompts in told.items():
        assert len(drawn[case].ids) == len(prompts.ids)
        assert (drawn[case].mirrored is None) == (prompts.mirrored is None)
    missing = dataclasses.replace(cfg.prompt, language_model=str(tmp_path / "nowhere"))
    without = crop_prompts(dataclasses.replace(cfg, prompt=missing), data)
    assert without.keys() == drawn.keys()  # no language model is needed


def test_a_flip_of_a_sided_task_takes_the_other_sides_channel(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    cfg = told_by_text(
        tiny_dataset, tmp_path, prompt__task_texts=SIDED, augment__flip=1.0, augment__affine=0.0
    )
    data = load_run_data(cfg)
    channels = task_channels(cfg, data)
    swapped = {"orn": 0, "ce": 2, "crn": 1}
    for case in data.train:
        own, other = channels[case.id]
        assert set(own) == {data.tasks.index(case.task)}
        assert other is not None and set(other) == {swapped[case.task]}
    batch = crop_batches(cfg, data, prepare_training(cfg, data))[0]
    image, view = make_draw(cfg)(batch, 0)
    assert view.text_id.tolist() == [swapped[data.tasks[i]] for i in batch.text_id]
    np.testing.assert_array_equal(view.label, batch.label[:, ::-1, ::-1])  # all are flipped


def test_a_side_without_a_counterpart_is_not_flipped(tiny_dataset: Path, tmp_path: Path) -> None:
    texts = (*SIDED[:2], "crn=the left submandibular gland")
    cfg = told_by_text(tiny_dataset, tmp_path, prompt__task_texts=texts)
    data = load_run_data(cfg)
    channels = task_channels(cfg, data)
    for case in data.train:
        assert (channels[case.id].mirrored is None) == (case.task != "orn")


def test_fixed_views_are_ours_too(tiny_dataset: Path) -> None:
    cfg = tiny_config(tiny_dataset, **MOVED, model__freeze_encoder=True, views__per_case=2)
    data = load_run_data(cfg)
    cases, prompts = prepare_training(cfg, data), prompt_set(cfg, data)
    names = [case.id for case in data.train]
    views = FixedViews.from_config(
        cfg, names, [prompts.training[n] for n in names], get_spec(cfg.model.preset).image_size
    )
    wanted = in_batches(
        views.turns(cases.task_ids),
        read_crops(views, cases, cfg),
        batch_size=cfg.batch_size,
        samples=cfg.steps * cfg.batch_size,
    )
    theirs, draw = crop_batches(cfg, data, cases), make_draw(cfg)
    for step in range(3):
        assert_same_crops(theirs[step], wanted[step])
    (first, _), (again, _) = draw(theirs[0], 0), draw(theirs[0], 7)
    np.testing.assert_array_equal(first, again)  # by the view's seed, not by the step
