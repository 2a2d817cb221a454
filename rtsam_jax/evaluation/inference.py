"""From a preprocessed case to a probability on its original grid: text and box, no clicks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.preprocess import Preprocessed
from rtsam_jax.evaluation.tiles import tile
from rtsam_jax.models.layers import upsample
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.prompts.dose import box_from_roi

BATCH = 2  # crops per call; fixed, so that nothing recompiles

CropPredictor = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def make_crop_predictor(
    graphdef: nnx.GraphDef[SAM3D],
    params: nnx.State,
    cfg: ExperimentConfig,
    texts: TextTable | None = None,
    *,
    crops: int = BATCH,
) -> CropPredictor:
    """`(image [n,S,S,S], roi [n,S,S,S], text_id [n]) -> probability [n,S,S,S]`, n at most `crops`.

    The mask prompt is zeros and there are no clicks: the first pass of training (trap 9).
    """
    spec = get_spec(cfg.model.preset)
    if texts is not None:
        texts = jax.tree.map(jnp.asarray, texts)

    @jax.jit
    def probability(
        params: nnx.State,
        texts: TextTable | None,
        image: jax.Array,
        roi: jax.Array,
        text_id: jax.Array,
    ) -> jax.Array:
        model = nnx.merge(graphdef, params)
        box, box_valid = box_from_roi(roi) if cfg.prompt.box else (None, None)
        prompts = model.fixed_prompts(box, box_valid, text_id, texts)
        mask = jnp.zeros((image.shape[0], *(spec.mask_size,) * 3, 1))
        # An empty click list, so that a missing box brings the "not a point" token as in training.
        points, labels = jnp.zeros((crops, 0, 3)), jnp.zeros((crops, 0), jnp.int32)
        prompts = prompts._replace(points=points, point_labels=labels, mask=mask)
        masks = model.decode(model.encode(image[..., None]), prompts)
        return jax.nn.sigmoid(upsample(masks.low_res_logits[..., 0], spec.image_size))

    def predict(image: np.ndarray, roi: np.ndarray, text_id: np.ndarray) -> np.ndarray:
        missing = crops - len(image)

        def fill(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, np.repeat(x[:1], missing, axis=0)]) if missing else x

        out = probability(params, texts, fill(image), fill(roi), fill(text_id))
        return np.asarray(out)[: len(image)]

    return predict


def predict_volume(
    predict: CropPredictor, scan: Preprocessed, text_id: int, size: int, *, name: str
) -> np.ndarray:
    """Probability `[X, Y, Z]` float32 on the model grid.

    One crop where what it is centred on fits, else overlapping ones blended with Gaussian weights;
    0 where no crop reaches. Crops are cut out, predicted and blended a batch at a time: what is
    held beside scan and result is a batch, and 20 bytes per voxel of the window that all crops
    reach, however many they are.
    """
    tiles = tile(scan, size, name=name)

    def crops() -> Iterator[np.ndarray]:
        for start in range(0, len(tiles), BATCH):
            rows = range(start, min(start + BATCH, len(tiles)))
            image = np.stack([tiles.image(row) for row in rows])
            roi = np.stack([tiles.region(row) for row in rows])
            yield from predict(image, roi, np.full(len(rows), text_id, np.int32))

    out = np.zeros(scan.image.shape, np.float32)
    out[tiles.place] = tiles.blended(crops())
    return out
