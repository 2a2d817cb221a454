"""The losses against numbers worked out by hand, MONAI, and the edges where gradients break."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtsam_jax import losses
from rtsam_jax.config import LossConfig
from rtsam_jax.errors import ConfigError

SHAPE = (2, 5, 4, 3)
ALL_TERMS = LossConfig(iou_head=0.5)


def _volumes(seed: int = 0, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, label and ROI of `SHAPE`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, SHAPE).astype(np.float32)
    return logits, rng.random(SHAPE) < 0.4, rng.random(SHAPE) < 0.6


def _row(values: list[float]) -> jax.Array:
    """Probabilities as logits, one case of [1, 1, n] voxels."""
    p = np.array(values, np.float64)
    return jnp.array(np.log(p / (1 - p)), jnp.float32)[None, None, None]


def _mask(values: list[int]) -> jax.Array:
    return jnp.array(values, jnp.uint8)[None, None, None]


def _errors(logits: object, label: object, roi: object = None):
    """Errors and target; the ROI is everything where there is none."""
    target = losses.make_target(
        jnp.asarray(label), jnp.asarray(jnp.ones_like(label) if roi is None else roi)
    )
    return losses.voxel_errors(jnp.asarray(logits), target), target


def _roi_counts(logits: object, label: object, roi: object = None) -> losses.SoftCounts:
    return losses.count_roi(*_errors(logits, label, roi))


def _dice_ce(logits: object, label: object, epsilon: float) -> jax.Array:
    return losses.dice_ce(*_errors(logits, label), epsilon)


def _loss(logits: object, label: object, roi: object, iou: object, cfg: LossConfig):
    return losses.segmentation_loss(
        jnp.asarray(logits), losses.make_target(jnp.asarray(label), jnp.asarray(roi)), iou, cfg
    )


class TestByHand:
    """Five voxels, the last outside the ROI: TP = 1.4, FP = 0.25, FN = 0.6 inside."""

    logits = _row([0.8, 0.6, 0.2, 0.05, 0.9])
    label = _mask([1, 1, 0, 0, 1])
    roi = _mask([1, 1, 1, 1, 0])

    def test_dice(self) -> None:
        got = losses.dice_loss(_roi_counts(self.logits, self.label, self.roi), epsilon=1.0)
        # sum p = 1.65, sum y = 2: 1 - (2 * 1.4 + 1) / (1.65 + 2 + 1)
        np.testing.assert_allclose(got, [1 - 3.8 / 4.65], rtol=1e-6)

    @pytest.mark.parametrize(
        ("alpha", "beta", "gamma"), [(0.5, 0.5, 0.75), (0.3, 0.7, 0.75), (0.7, 0.3, 4 / 3)]
    )
    def test_focal_tversky(self, alpha: float, beta: float, gamma: float) -> None:
        got = losses.focal_tversky_loss(
            _roi_counts(self.logits, self.label, self.roi),
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            epsilon=0.1,
        )
        index = (1.4 + 0.1) / (1.4 + alpha * 0.25 + beta * 0.6 + 0.1)
        np.testing.assert_allclose(got, [(1 - index) ** gamma], rtol=1e-5)

    def test_small_target_focus(self) -> None:
        cfg = LossConfig(dice_ce=0.0)  # the paper's literal Eq. (1)
        got, _ = _loss(self.logits, self.label, self.roi, None, cfg)
        expected = 0.7 * (1 - 3.8 / 4.65) + 0.3 * (1 - 2.4 / 2.825) ** 0.75
        np.testing.assert_allclose(got, [expected], rtol=1e-5)

    def test_dice_ce(self) -> None:
        # Whole crop: TP = 2.3, sum p = 2.55, sum y = 3.
        dice = 1 - (2 * 2.3 + 1) / (2.55 + 3 + 1)
        entropy = -np.log([0.8, 0.6, 0.8, 0.95, 0.9]).mean()
        got = _dice_ce(self.logits, self.label, epsilon=1.0)
        np.testing.assert_allclose(got, [dice + entropy], rtol=1e-6)

    def test_iou_head(self) -> None:
        # Predicted and true voxels coincide but for one miss: IoU 2/3.
        label = _mask([1, 1, 1, 0, 0])
        logits = _row([0.8, 0.5, 0.2, 0.05, 0.4])
        got = losses.iou_head_loss(jnp.array([0.5]), logits, label)
        np.testing.assert_allclose(got, [(0.5 - 2 / 3) ** 2], rtol=1e-5)

    def test_dice_score(self) -> None:
        # 3 voxels of truth, 1 missed, 2 in excess: 2 * 2 / (3 + 4).
        np.testing.assert_allclose(losses.dice_score(3, 1, 2), 4 / 7, rtol=1e-6)


class TestAgainstMonai:
    @pytest.mark.parametrize("epsilon", [1.0, 1e-3])
    def test_dice_ce_and_its_gradient(self, epsilon: float) -> None:
        torch = pytest.importorskip("torch")
        monai = pytest.importorskip("monai.losses")
        logits, label, _ = _volumes()
        theirs = monai.DiceCELoss(sigmoid=True, smooth_nr=epsilon, smooth_dr=epsilon)
        got = _dice_ce(jnp.array(logits), jnp.array(label), epsilon)
        slope = jax.grad(lambda x: _dice_ce(x, jnp.array(label), epsilon).sum())(jnp.array(logits))
        for case in range(SHAPE[0]):  # per case: MONAI's own mean would hide which case is off
            x = torch.tensor(logits[case][None, None], requires_grad=True)
            loss = theirs(x, torch.tensor(label[case][None, None], dtype=torch.float32))
            loss.backward()
            np.testing.assert_allclose(got[case], loss.item(), rtol=1e-5)
            np.testing.assert_allclose(slope[case], x.grad[0, 0].numpy(), rtol=1e-4, atol=1e-8)

    def test_roi_terms_equal_monai_on_the_rois_voxels(self) -> None:
        torch = pytest.importorskip("torch")
        monai = pytest.importorskip("monai.losses")
        logits, label, roi = _volumes()
        alpha, beta, gamma, epsilon = 0.3, 0.7, 0.75, 1.0
        counts = _roi_counts(logits, label, roi)
        dice = losses.dice_loss(counts, epsilon)
        tversky = losses.focal_tversky_loss(
            counts, alpha=alpha, beta=beta, gamma=gamma, epsilon=epsilon
        )
        smooth = {"sigmoid": True, "smooth_nr": epsilon, "smooth_dr": epsilon}
        for case in range(SHAPE[0]):
            inside = roi[case]
            x = torch.tensor(logits[case][inside][None, None])
            y = torch.tensor(label[case][inside][None, None], dtype=torch.float32)
            np.testing.assert_allclose(dice[case], monai.DiceLoss(**smooth)(x, y), rtol=1e-5)
            base = monai.TverskyLoss(alpha=alpha, beta=beta, **smooth)(x, y).item()
            np.testing.assert_allclose(tversky[case], base**gamma, rtol=1e-5)


def _saturated(kind: str, label: np.ndarray) -> np.ndarray:
    sign = {
        "right": np.where(label, 1, -1),
        "wrong": np.where(label, -1, 1),
        "all_on": np.ones_like(label, int),
        "all_off": -np.ones_like(label, int),
    }[kind]
    return (1e4 * sign).astype(np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("saturation", ["none", "right", "wrong", "all_on", "all_off"])
@pytest.mark.parametrize("empty", ["nothing", "truth", "roi", "truth_and_roi"])
def test_loss_and_gradient_stay_finite(dtype: jnp.dtype, saturation: str, empty: str) -> None:
    logits, label, roi = _volumes()
    if "truth" in empty:
        label = np.zeros_like(label)
    if "roi" in empty:
        roi = np.zeros_like(roi)
    if saturation != "none":
        logits = _saturated(saturation, label)

    def mean_loss(logits: jax.Array, iou: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, parts = _loss(logits, label, roi, iou, ALL_TERMS)
        return loss.mean(), parts

    (loss, parts), gradients = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)(
        jnp.array(logits, dtype), jnp.array([0.2, 0.9], dtype)
    )
    assert loss.dtype == jnp.float32 and np.isfinite(loss)
    for value in parts.values():
        assert value.shape == (SHAPE[0],) and value.dtype == jnp.float32
        assert np.isfinite(value).all()
    for gradient in gradients:
        assert gradient.dtype == dtype
        assert np.isfinite(np.asarray(gradient, np.float32)).all()
    if empty == "roi":
        assert not parts["dice"].any() and not parts["focal_tversky"].any()
    if saturation == "right":
        np.testing.assert_array_equal(parts["dice_ce"], 0)
    if saturation == "wrong" and empty == "nothing":
        assert (parts["dice_ce"] > 9000).all()  # not clipped: the entropy still pulls back
        assert (np.abs(np.asarray(gradients[0], np.float32)) > 0).all()


def test_a_perfect_prediction_would_break_the_plain_power() -> None:
    """The guard of the focal power is needed: without it this gradient is NaN."""
    _, label, roi = _volumes()
    logits = jnp.array(_saturated("right", label))

    def plain(x: jax.Array) -> jax.Array:
        p, y = jax.nn.sigmoid(x), jnp.array(label & roi, jnp.float32)
        overlap = (p * y).sum()
        error = 0.5 * ((p * (roi & ~label)).sum() + ((1 - p) * y).sum())
        return (1 - (overlap + 1) / (overlap + error + 1)) ** 0.75

    assert np.isnan(jax.grad(plain)(logits)).any()

    def guarded(x: jax.Array) -> jax.Array:
        options = {"alpha": 0.5, "beta": 0.5, "gamma": 0.75, "epsilon": 1.0}
        return losses.focal_tversky_loss(_roi_counts(x, label, roi), **options).sum()

    value, slope = jax.value_and_grad(guarded)(logits)
    assert value == 0 and not slope.any()


def test_a_nearly_perfect_prediction_keeps_its_slope() -> None:
    """1 - (2 TP + e) / (P + Y + e) rounds to 0 here; error / (...) does not."""
    label = np.ones((1, 8, 8, 8), bool)
    logits = jnp.full(label.shape, 18.0)

    def dice(x: jax.Array) -> jax.Array:
        return losses.dice_loss(_roi_counts(x, label), epsilon=1.0)

    got = dice(logits)
    miss = 512 / (1 + np.exp(18.0))
    np.testing.assert_allclose(got, [miss / 1025], rtol=1e-4)
    slope = jax.grad(lambda x: dice(x).sum())(logits)
    assert (slope < 0).all()


def test_voxels_outside_the_roi_do_not_move_the_focus_loss() -> None:
    logits, label, roi = _volumes()
    cfg = LossConfig(dice_ce=0.0)
    slope = jax.grad(lambda x: _loss(x, label, roi, None, cfg)[0].sum())(jnp.array(logits))
    np.testing.assert_array_equal(np.asarray(slope)[~roi], 0)
    assert (np.asarray(slope)[roi] != 0).all()


def test_each_case_stands_alone() -> None:
    logits, label, roi = _volumes()
    iou = jnp.array([0.3, 0.8])
    both, _ = _loss(logits, label, roi, iou, ALL_TERMS)
    for case in range(2):
        part = slice(case, case + 1)
        alone, _ = _loss(logits[part], label[part], roi[part], iou[part], ALL_TERMS)
        np.testing.assert_allclose(both[case], alone[0], rtol=1e-6)


def test_weighted_sum_of_the_reported_parts() -> None:
    logits, label, roi = _volumes()
    cfg = LossConfig(dice=0.2, focal_tversky=0.5, dice_ce=3.0, iou_head=0.7)
    loss, parts = _loss(logits, label, roi, jnp.array([0.1, 0.9]), cfg)
    assert set(parts) == {"dice", "focal_tversky", "dice_ce", "iou_head", "truth_outside_roi"}
    expected = (
        0.2 * parts["dice"]
        + 0.5 * parts["focal_tversky"]
        + 3.0 * parts["dice_ce"]
        + 0.7 * parts["iou_head"]
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("term", ["dice", "focal_tversky", "dice_ce", "iou_head"])
def test_weight_zero_leaves_a_term_out(term: str) -> None:
    logits, label, roi = _volumes()
    cfg = dataclasses.replace(ALL_TERMS, **{term: 0.0})
    iou = jnp.array([0.1, 0.9])
    full, parts = _loss(logits, label, roi, iou, ALL_TERMS)
    without, fewer = _loss(logits, label, roi, iou, cfg)
    assert set(parts) - set(fewer) == {term}
    np.testing.assert_allclose(
        full - without, getattr(ALL_TERMS, term) * parts[term], rtol=1e-4, atol=1e-6
    )


def test_truth_outside_the_roi_is_flagged() -> None:
    label = np.zeros((4, 3, 3, 3), bool)
    roi = np.zeros_like(label)
    label[0, 0, 0, 0] = roi[0, 2, 2, 2] = True  # apart
    label[1, :2, 0, 0] = roi[1, 1, 0, 0] = True  # touching in one voxel
    roi[2, 0, 0, 0] = True  # no truth
    label[3, 0, 0, 0] = True  # no ROI
    _, parts = _loss(jnp.zeros(label.shape), label, roi, None, LossConfig())
    np.testing.assert_array_equal(parts["truth_outside_roi"], [1, 0, 0, 1])


def test_iou_target_has_no_gradient_but_the_head_has() -> None:
    logits, label, _ = _volumes()
    predicted = jnp.array([0.1, 0.9])
    by_head, by_logits = jax.grad(
        lambda p, x: losses.iou_head_loss(p, x, label).sum(), argnums=(0, 1)
    )(predicted, jnp.array(logits))
    mask = logits >= 0
    actual = (mask & label).sum((1, 2, 3)) / (mask | label).sum((1, 2, 3))
    np.testing.assert_allclose(by_head, 2 * (predicted - actual), rtol=1e-5)
    assert not by_logits.any()


def test_two_empty_masks_are_a_perfect_match() -> None:
    label = jnp.zeros((1, 2, 2, 2), bool)
    off = jnp.full(label.shape, -1e4)
    assert float(losses.dice_score(0, 0, 0)) == 1 and float(losses.dice_score(0, 0, 8)) == 0
    assert float(losses.iou_head_loss(jnp.ones(1), off, label)[0]) == 0


def test_the_shared_exponential_has_the_values_and_slopes_of_sigmoid_and_softplus() -> None:
    x = jnp.array([-1e4, -100, -20, -1, -1e-6, 0, 1e-6, 1, 20, 100, 1e4], jnp.float32)
    x = x[None, :, None, None]
    nothing = losses.make_target(jnp.zeros_like(x), jnp.ones_like(x))
    for got, expected in ((0, jax.nn.sigmoid), (1, jax.nn.softplus)):

        def ours(x: jax.Array, got: int = got) -> jax.Array:
            return losses.voxel_errors(x, nothing)[got]

        np.testing.assert_allclose(ours(x), expected(x), rtol=1e-6)
        slope = np.float64(jax.grad(lambda x: ours(x).sum())(x))
        wide = np.float64(x)
        small = np.exp(-abs(wide))
        exact = small / (1 + small) ** 2 if got == 0 else np.where(x >= 0, 1, small) / (1 + small)
        np.testing.assert_allclose(slope, exact, rtol=1e-6, atol=1e-38)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    """A bfloat16 sum stalls at 256 ones; 4096 voxels must give the float32 answer."""
    label = np.zeros((1, 16, 16, 16), bool)
    label[0, :8] = True
    logits = jnp.array(np.where(label, 1.5, -0.5), jnp.bfloat16)  # both exact in bfloat16
    low, _ = _loss(logits, label, label, None, LossConfig())
    high, _ = _loss(logits.astype(jnp.float32), label, label, None, LossConfig())
    np.testing.assert_array_equal(low, high)


def test_pass_weights() -> None:
    scores = jnp.array([[1.0, 2.0], [3.0, 5.0], [8.0, 8.0]])
    np.testing.assert_allclose(losses.weigh_passes(scores, LossConfig()), [4, 5])
    cfg = LossConfig(pass_weights=(2.0, 1.0, 0.0))
    np.testing.assert_allclose(losses.weigh_passes(scores, cfg), [5 / 3, 3], rtol=1e-6)


def test_misuse_is_a_typed_error() -> None:
    logits, label, roi = _volumes()
    with pytest.raises(ConfigError, match="iou_head"):
        _loss(logits, label, roi, None, ALL_TERMS)
    with pytest.raises(ConfigError, match="2 numbers.*3 passes"):
        losses.weigh_passes(jnp.zeros((3, 1)), LossConfig(pass_weights=(1.0, 1.0)))
    with pytest.raises(ConfigError, match="threshold"):
        losses.iou_head_loss(jnp.zeros(2), logits, label, threshold=1.0)
