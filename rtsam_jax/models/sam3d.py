"""The assembly: encode once, decode as often as prompts change."""

from __future__ import annotations

from flax import nnx

from rtsam_jax.models.image_encoder import ImageEncoder3D
from rtsam_jax.models.layers import Array, Precision
from rtsam_jax.models.mask_decoder import MaskDecoder3D, Masks
from rtsam_jax.models.presets import ModelSpec
from rtsam_jax.models.prompt_encoder import PromptEncoder3D, Prompts


class SAM3D(nnx.Module):
    """SAM-Med3D with text, dose-box, click and mask prompts.

    Args:
        spec: sizes, see `rtsam_jax.models.presets`.
        tasks: how many learned task prompts; 0 builds none.
        task_tokens: tokens of each.
        compute_dtype: "float32" or "bfloat16"; parameters are float32 in both.
        rngs: stream `params`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        tasks: int = 0,
        task_tokens: int = 4,
        compute_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        precision = Precision.named(compute_dtype)
        self.image_encoder = ImageEncoder3D(spec, precision=precision, rngs=rngs)
        self.prompt_encoder = PromptEncoder3D(
            spec, tasks=tasks, task_tokens=task_tokens, precision=precision, rngs=rngs
        )
        self.mask_decoder = MaskDecoder3D(spec, precision=precision, rngs=rngs)

    def encode(self, image: Array) -> Array:
        """`[B, S, S, S, 1]` normalised intensities -> `[B, g, g, g, C]` float32."""
        return self.image_encoder(image)

    def fixed_prompts(self, box: Array | None, box_valid: Array | None, task_id: Array) -> Prompts:
        """The prompts that clicks do not change: box `[B, 2, 3]` and the task's tokens, if any."""
        learned = self.prompt_encoder.task_embed is not None
        text = self.prompt_encoder.task_tokens(task_id) if learned else None
        return Prompts(box=box, box_valid=box_valid, text=text)

    def decode(self, embedding: Array, prompts: Prompts, *, multimask: bool = False) -> Masks:
        """`[B, g, g, g, C]` and prompts -> logits `[B, m, m, m, M]` and IoUs `[B, M]`."""
        encoded = self.prompt_encoder(prompts, embedding.shape[0])
        return self.mask_decoder(
            embedding,
            self.prompt_encoder.dense_position(),
            encoded.tokens,
            encoded.valid,
            encoded.dense,
            multimask=multimask,
        )
