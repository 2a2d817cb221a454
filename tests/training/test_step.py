"""The step: in place, and nothing frozen moves or costs a backward pass."""

from __future__ import annotations

import jax
import numpy as np
import optax
from flax import nnx

from rtsam_jax.data.sample import Sample
from rtsam_jax.prompts.dose import box_from_roi
from rtsam_jax.training.rules import path_of
from rtsam_jax.training.sharding import shard_batch
from rtsam_jax.training.step import make_train_step
from tests.tiny import tiny_config
from tests.training.conftest import Training, copied


def run(training: Training, steps: int, start: int = 0):
    built, metrics = training.build(), []
    state, batches = built.state, training.batches()
    for i in range(start, start + steps):
        with jax.set_mesh(training.mesh):  # as in the loop, so that both use one compilation
            state, out = training.step(state, built.frozen, shard_batch(training.mesh, batches[i]))
        metrics.append(jax.device_get(out))
    return built, state, metrics


def test_the_state_is_donated(training: Training) -> None:
    built = training.build()
    batch = shard_batch(training.mesh, training.batches()[0])
    with jax.set_mesh(training.mesh):
        training.step(built.state, built.frozen, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(built.state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((built.frozen, batch)))


def test_steps_count_and_differ(training: Training) -> None:
    _, state, metrics = run(training, 3)
    assert int(state.step) == 3
    losses = [float(m.loss) for m in metrics]
    assert np.isfinite(losses).all() and len(set(losses)) == 3
    for m in metrics:
        assert m.case_loss.shape == (training.cfg.batch_size,)
        np.testing.assert_allclose(m.loss, m.case_loss.mean(), rtol=1e-6)
        assert m.grad_norm > 0 and 0 <= m.dice_fixed <= 1 and 0 <= m.dice_clicked <= 1


def test_the_loss_falls_on_one_batch(training: Training) -> None:
    built = training.build()
    state, batch = built.state, shard_batch(training.mesh, training.batches()[0])
    losses = []
    for _ in range(25):
        with jax.set_mesh(training.mesh):
            state, metrics = training.step(state, built.frozen, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.9 * losses[0]


def test_clicks_derive_from_step_and_seed_by_one_program(training: Training) -> None:
    """The same batch at another step draws other clicks, so only later passes differ."""
    batch = shard_batch(training.mesh, training.batches()[0])
    found, programs = [], set()
    for number, seed in ((0, 0), (0, 0), (7, 0), (0, 1)):
        built = training.build()
        built.state.step = jax.device_put(np.int32(number), built.state.step.sharding)
        built.state.seed = jax.device_put(np.uint32(seed), built.state.seed.sharding)
        with jax.set_mesh(training.mesh):
            found.append(jax.device_get(training.step(built.state, built.frozen, batch)[1]))
        programs.add(training.step._cache_size())
    assert len(programs) == 1
    first, same, later, other = found
    assert first.loss == same.loss and first.dice_fixed == later.dice_fixed
    assert first.loss != later.loss
    # tiny_config augments nothing and jitters no box: another seed moves the clicks alone.
    assert first.dice_fixed == other.dice_fixed
    assert other.loss not in (first.loss, later.loss)


def test_frozen_parameters_stay_and_all_others_move(frozen_training: Training) -> None:
    built = frozen_training.build()
    before = copied((built.frozen, built.state.trained))
    _, state, _ = run(frozen_training, 2)
    after = copied((built.frozen, state.trained))
    for path, leaf in nnx.to_flat_state(before[0]):
        value = dict(nnx.to_flat_state(after[0]))[path].get_value()
        np.testing.assert_array_equal(leaf.get_value(), value, err_msg=path_of(path))
    trained = dict(nnx.to_flat_state(after[1]))
    still = [
        path_of(path)
        for path, leaf in nnx.to_flat_state(before[1])
        if np.array_equal(leaf.get_value(), trained[path].get_value())
    ]
    assert still == []


def flops(training: Training, freeze: bool) -> float:
    """Of a step lowered, not compiled."""
    cfg = tiny_config(training.cfg.data.dataset, model__freeze_encoder=freeze)
    cfg.model.checkpoint = training.cfg.model.checkpoint
    built = Training(cfg, training.data, [], training.mesh, training.optimizer, None).build()
    batch = shard_batch(training.mesh, training.batches()[0])
    step = make_train_step(built.graphdef, training.optimizer, cfg)
    cost = step.lower(built.state, built.frozen, batch).cost_analysis()
    return float(cost["flops"])


def test_a_frozen_encoder_costs_no_backward_pass(frozen_training: Training) -> None:
    built = frozen_training.build()
    model = nnx.merge(built.graphdef, built.state.trained, built.frozen)
    graphdef, params = nnx.split(model)
    image = frozen_training.batches()[0].image
    encode = jax.jit(lambda params, image: nnx.merge(graphdef, params).encode(image))
    forward = float(encode.lower(params, image).cost_analysis()["flops"])
    saved = flops(frozen_training, freeze=False) - flops(frozen_training, freeze=True)
    # A backward pass costs about two forward passes.
    assert saved > 1.5 * forward


def one_step(training: Training, batch: Sample, **changes: object):
    """Metrics of the first step of a config that differs by `changes`."""
    cfg = tiny_config(training.cfg.data.dataset, **changes)
    built = training.build()
    step = make_train_step(built.graphdef, training.optimizer, cfg)
    with jax.set_mesh(training.mesh):
        return jax.device_get(step(built.state, built.frozen, shard_batch(training.mesh, batch))[1])


def cut(batch: Sample, rows: list[int]) -> Sample:
    return Sample(*(part[rows] for part in batch))


def assert_same_update(training: Training, ours, other) -> None:
    """Losses row by row, their means, and how far all parameters together moved."""
    (params, metrics), (other_params, other_metrics) = ours, other
    counted = len(other_metrics.case_loss)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6),
        metrics._replace(case_loss=metrics.case_loss[:counted]),
        other_metrics,
    )
    # Of a bias whose gradient is 0, Adam makes a step of the rounding error: hence together.
    apart = optax.tree.norm(optax.tree.sub(params, other_params))
    moved = optax.tree.norm(optax.tree.sub(params, copied(training.build().state.trained)))
    assert apart < 5e-3 * moved


def updated(training: Training, batch: Sample, **changes: object):
    """The parameters after one step, and its metrics; clicks as in tests/multidevice."""
    cfg = tiny_config(training.cfg.data.dataset, click__threshold=1e-3, **changes)
    built = training.build()
    step = make_train_step(built.graphdef, training.optimizer, cfg)
    with jax.set_mesh(training.mesh):
        state, metrics = step(built.state, built.frozen, shard_batch(training.mesh, batch))
    return copied(state.trained), jax.device_get(metrics)


def test_accumulated_gradients_are_those_of_the_whole_batch(training: Training) -> None:
    batch = cut(training.batches()[0], [0, 1, 1, 0])._replace(
        weight=np.array([1, 1, 0, 1], np.float32)
    )
    options = {"batch_size": 4, "augment__flip_axes": (1,), "dose__box_jitter": 2}
    whole = updated(training, batch, **options)
    assert len(set(whole[1].case_loss.tolist())) == 4  # rows are told apart
    assert_same_update(training, updated(training, batch, accumulate=2, **options), whole)


def test_a_row_that_fills_the_batch_up_changes_nothing(training: Training) -> None:
    batch = training.batches()[0]
    filled = cut(batch, [0, 1, 0, 1])._replace(weight=np.array([1, 1, 0, 0], np.float32))
    assert_same_update(training, updated(training, filled), updated(training, batch))


def same(a, b) -> bool:
    return bool(np.array_equal(a.case_loss, b.case_loss))


def test_the_step_augments_its_batch(training: Training) -> None:
    """A flip that is certain is the flipped batch, and the draws of augmentation are its own."""
    batch = training.batches()[0]
    turned = batch._replace(**{k: np.flip(getattr(batch, k), 2) for k in ("image", "label", "roi")})
    plain = one_step(training, turned)
    flipped = one_step(training, batch, augment__flip_axes=(1,), augment__flip=1.0)
    np.testing.assert_allclose(flipped.case_loss, plain.case_loss, rtol=1e-5)
    assert not same(flipped, one_step(training, batch))


def test_a_box_is_jittered_where_the_config_says_so(training: Training) -> None:
    batch = training.batches()[0]
    plain, moved = one_step(training, batch), one_step(training, batch, dose__box_jitter=6)
    assert not same(plain, moved) and np.isfinite(moved.case_loss).all()
    assert same(moved, one_step(training, batch, dose__box_jitter=6))


def test_a_box_from_the_label_is_that_of_the_label_as_it_lies(training: Training) -> None:
    """Whatever region came along: after a turn it would be wider than the label."""
    batch = training.batches()[0]
    box, _ = box_from_roi(batch.label)
    filled = np.zeros_like(batch.roi)
    for row, (low, high) in enumerate(np.asarray(box).astype(int)):
        filled[row][tuple(map(slice, low, high + 1))] = 1
    wide = batch._replace(roi=np.ones_like(batch.roi))
    from_label = one_step(training, wide, dose__source="label", evaluate=False)
    np.testing.assert_allclose(
        from_label.case_loss, one_step(training, batch._replace(roi=filled)).case_loss, rtol=1e-5
    )
    assert not same(from_label, one_step(training, wide))
