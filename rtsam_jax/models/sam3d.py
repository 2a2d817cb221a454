"""The assembly: encode once, decode as often as prompts change."""

from __future__ import annotations

from flax import nnx

from rtsam_jax.models.image_encoder import ImageEncoder3D
from rtsam_jax.models.layers import Array, Precision
from rtsam_jax.models.mask_decoder import MaskDecoder3D, Masks
from rtsam_jax.models.presets import ModelSpec
from rtsam_jax.models.prompt_encoder import NO_PROMPT, PromptEncoder3D, Prompts, PromptSizes
from rtsam_jax.models.text_adapter import TextTable


class SAM3D(nnx.Module):
    """SAM-Med3D with text, dose-box, click and mask prompts.

    Args:
        spec: sizes, see `rtsam_jax.models.presets`.
        prompt: text adapter or learned task prompts; the default builds neither.
        compute_dtype: "float32" or "bfloat16"; parameters are float32 in both.
        remat: the encoder's blocks are computed again in a backward pass, not kept.
        rngs: stream `params`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        prompt: PromptSizes = NO_PROMPT,
        compute_dtype: str = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        precision = Precision.named(compute_dtype)
        self.image_encoder = ImageEncoder3D(spec, remat=remat, precision=precision, rngs=rngs)
        self.prompt_encoder = PromptEncoder3D(spec, prompt=prompt, precision=precision, rngs=rngs)
        self.mask_decoder = MaskDecoder3D(spec, precision=precision, rngs=rngs)

    def encode(self, image: Array) -> Array:
        """`[B, S, S, S, 1]` normalised intensities -> `[B, g, g, g, C]` float32."""
        return self.image_encoder(image)

    def fixed_prompts(
        self,
        box: Array | None,
        box_valid: Array | None,
        text_id: Array,
        table: TextTable | None = None,
    ) -> Prompts:
        """The prompts that clicks do not change: box `[B, 2, 3]` and text or task, if any.

        Args:
            text_id: `[B]`; see `PromptEncoder3D.text_tokens`.
            table: of the run's texts, on the device; None where the model has no text adapter.
        """
        text, text_valid = self.prompt_encoder.text_tokens(text_id, table)
        return Prompts(box=box, box_valid=box_valid, text=text, text_valid=text_valid)

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
