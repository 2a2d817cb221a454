"""The other sides: the authors' PyTorch SAM-Med3D (`medim`) with the same recipe, three ways.

`medim` is eager; `medim-compile` has encoder, decoder and loss under `torch.compile`;
`medim-packed` is eager with our attention (`benchmark.packed`). Nothing is held back: as many
threads as there are CPUs, inference mode for the forward pass, no gradient through the frozen
encoder, no recomputation, autocast where we compute in bfloat16. The rivals get clicks and mask,
but neither dose box nor task tokens, which the published model cannot take; that is a few tokens
less work than ours.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

import jax
import numpy as np

from rtsam_jax.benchmark import packed, recipe
from rtsam_jax.benchmark.flops import (
    decoder_flop,
    encoder_flop,
    encoder_grad_flop,
    refine_flop,
    upsample_flop,
)
from rtsam_jax.benchmark.timing import Contender
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.sample import Sample
from rtsam_jax.errors import ConfigError, ExtraMissing
from rtsam_jax.models.presets import ModelSpec, get_spec

RIVALS = ("medim", "medim-compile", "medim-packed")
_PROGRAMS = 64  # that torch.compile may make of one function
# What medim leaves open; the rest of a spec must be the published one's.
_CHOSEN = {"image_size", "patch_size", "width", "depth", "heads", "global_blocks", "prompt_width"}


class TorchModel:
    """One randomly initialised `medim` model, shared by the sides that run it.

    Raises:
        ExtraMissing: torch or medim is not installed.
        ConfigError: a preset `medim` cannot build, or JAX computes on a device torch has not.
    """

    def __init__(self, cfg: ExperimentConfig):
        self.cfg, self.spec = cfg, get_spec(cfg.model.preset)
        _require_counterpart(cfg.model.preset, self.spec)
        try:
            import medim
            import torch
        except ImportError as error:
            raise ExtraMissing(
                f"the PyTorch original cannot be loaded ({error}); install it with "
                f"pip install -e '.[test]', or time this project alone with --rival none."
            ) from error
        self.torch, self.device = torch, _device(torch)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(cfg.seed)
        with redirect_stdout(StringIO()):  # it announces itself
            self.module = medim.create_model(
                "SAM-Med3D",
                image_size=self.spec.image_size,
                vit_patch_size=self.spec.patch_size,
                encoder_embed_dim=self.spec.width,
                encoder_depth=self.spec.depth,
                encoder_num_heads=self.spec.heads,
                encoder_global_attn_indexes=list(self.spec.global_blocks),
                prompt_embed_dim=self.spec.prompt_width,
            ).to(self.device)


def _require_counterpart(preset: str, spec: ModelSpec) -> None:
    published = ModelSpec()
    fixed = [name for name in ModelSpec.__dataclass_fields__ if name not in _CHOSEN]
    other = [name for name in fixed if getattr(spec, name) != getattr(published, name)]
    if other:
        raise ConfigError(
            f"medim has no counterpart of preset {preset!r}, whose {other[0]} is another; use "
            f"--preset vit_b_ori or --rival none."
        )


def _device(torch: Any) -> str:
    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    if backend == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise ConfigError(
        f"JAX uses {backend}, which this installation of torch cannot: set JAX_PLATFORMS=cpu, or "
        f"time this project alone with --rival none."
    )


class RivalSide:
    """One way to run a `TorchModel`.

    Args:
        side: of `RIVALS`.

    Raises:
        ConfigError: `medim-packed` where the tokens do not fit into one window.
    """

    def __init__(self, model: TorchModel, side: str):
        self.side, self.cfg, self.spec = side, model.cfg, model.spec
        self.torch, self.device, self.model = model.torch, model.device, model.module
        self._padded = side != "medim-packed"
        if side == "medim-packed":
            packed.require_one_window(self.spec)

    def encoder(self, batch: Sample) -> Contender:
        """The encoder's forward pass."""
        image, encode = self._image(batch), self._encoder()

        def run() -> None:
            with self.torch.inference_mode():
                encode(image)

        flop = encoder_flop(self.spec, padded=self._padded) * len(image)
        return self._contender(run, flop)

    def encoder_grad(self, batch: Sample) -> Contender:
        """The encoder's forward pass, and the gradient of all its parameters."""
        image, encode = self._image(batch), self._encoder()
        cotangent = self._embedding(len(image))

        def run() -> None:
            encode(image).float().backward(cotangent)
            self.model.zero_grad(set_to_none=True)

        flop = encoder_grad_flop(self.spec, padded=self._padded) * len(image)
        return self._contender(run, flop)

    def refine(self, batch: Sample) -> Contender:
        """One pass from a ready embedding: decode, loss, new clicks, gradient."""
        torch, click = self.torch, self.cfg.click
        label, roi = self._masks(batch)
        embedding, mask = self._embedding(len(label)), self._no_mask(len(label))
        slots = click.iterations * click.per_iteration
        points = torch.rand((len(label), slots, 3), device=self.device) * self.spec.image_size
        clicks = points, torch.ones((len(label), slots), dtype=torch.int64, device=self.device)
        one_pass = self._pass()

        def run() -> None:
            loss, _, logits = one_pass(embedding, clicks, mask, label, roi)
            recipe.draw_clicks(torch, logits.detach() >= 0, label, click.per_iteration)
            loss.backward()
            self.model.zero_grad(set_to_none=True)

        flop = refine_flop(self.spec, slots + 1, self.spec.mask_tokens) * len(label)
        return self._contender(run, flop)

    def step(self, batch: Sample) -> Contender:
        """Encode, a click-free pass, passes with clicks, one backward pass, AdamW."""
        torch, cfg, click = self.torch, self.cfg, self.cfg.click
        image, (label, roi) = self._image(batch), self._masks(batch)
        encode, one_pass = self._encoder(), self._pass()
        optimizer = torch.optim.AdamW(
            [*self.model.prompt_encoder.parameters(), *self.model.mask_decoder.parameters()],
            lr=cfg.optim.lr,
            betas=(cfg.optim.b1, cfg.optim.b2),
            weight_decay=cfg.optim.weight_decay,
        )

        def run() -> None:
            with torch.no_grad():
                embedding = encode(image)
            mask, clicks, losses = self._no_mask(len(label)), None, []
            for iteration in range(1 + click.iterations):
                loss, low_res, logits = one_pass(embedding, clicks, mask, label, roi)
                losses.append(loss)
                if iteration < click.iterations:
                    predicted, mask = logits.detach() >= 0, low_res.detach()
                    new = recipe.draw_clicks(torch, predicted, label, click.per_iteration)
                    if clicks is not None:
                        new = tuple(map(torch.cat, zip(clicks, new, strict=True), (1, 1)))
                    clicks = new
            optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).mean().backward()
            optimizer.step()

        flop = encoder_flop(self.spec, padded=self._padded)
        for iteration in range(1 + click.iterations):
            prompts = iteration * click.per_iteration + (iteration > 0)
            flop += refine_flop(self.spec, prompts, self.spec.mask_tokens)
        return self._contender(run, flop * len(label))

    def predict(self, batch: Sample) -> Contender:
        """One crop to probabilities on the host, without a click."""
        image, mask = self._image(batch)[:1], self._no_mask(1)
        encode, decode = self._encoder(), self._decoder()

        def run() -> None:
            with self.torch.inference_mode():
                _, logits = decode(encode(image), None, mask)
                logits.sigmoid().cpu()

        flop = encoder_flop(self.spec, padded=self._padded)
        flop += decoder_flop(self.spec, 0, self.spec.mask_tokens) + upsample_flop(self.spec)
        return self._contender(run, flop)

    def click(self, batch: Sample) -> Contender:
        """Decodes again with one more click, from a kept embedding and a mask of zeros."""
        torch, decode = self.torch, self._decoder()
        embedding, mask = self._embedding(1), self._no_mask(1)
        points = torch.full((1, 1, 3), self.spec.image_size / 2, device=self.device)
        clicks = points, torch.ones((1, 1), dtype=torch.int64, device=self.device)

        def run() -> None:
            with torch.inference_mode():
                _, logits = decode(embedding, clicks, mask)
                logits.sigmoid().cpu()

        flop = decoder_flop(self.spec, 2, self.spec.mask_tokens) + upsample_flop(self.spec)
        return self._contender(run, flop)

    def _contender(self, run: Callable[[], None], flop: float) -> Contender:
        """`run`, waited for; compiled by a first call where this side compiles."""
        cuda, dynamo = self.device == "cuda", self.torch._dynamo

        def waited() -> None:
            run()
            if cuda:
                self.torch.cuda.synchronize()

        def device_peak() -> int | None:
            if not cuda:
                return None
            peak = self.torch.cuda.max_memory_allocated()
            self.torch.cuda.reset_peak_memory_stats()
            return peak

        contender = Contender(self.side, waited, 0.0, flop, device_peak=device_peak)
        if self.side == "medim-compile":
            dynamo.reset()  # another case's shapes are none of this one's
            dynamo.utils.counters.clear()
            began = time.perf_counter()
            waited()
            contender.compile_s = time.perf_counter() - began
            contender.graph_breaks = sum(dynamo.utils.counters["graph_break"].values())
        return contender

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.side != "medim-compile":
            return function
        # Shapes never vary within a case; left to guess, it makes the number of prompts a variable.
        # Every number of clicks is a program; past its limit it would run eager without a word.
        self.torch._dynamo.config.recompile_limit = _PROGRAMS
        return self.torch.compile(function, dynamic=False)

    def _encoder(self) -> Callable[[Any], Any]:
        module = self.model.image_encoder
        if self.side == "medim-packed":
            return self._in_dtype(partial(packed.encode, self.torch, module))
        return self._in_dtype(self._compiled(module))

    def _decoder(self) -> Callable[..., tuple[Any, Any]]:
        """(embedding, clicks or None, mask) -> low-resolution logits and full-size ones."""
        mask_decoder = self._in_dtype(self._compiled(self.model.mask_decoder))

        def decode(embedding: Any, clicks: Any, mask: Any) -> tuple[Any, Any]:
            # In float32: it assigns float32 parameters into what it has computed.
            position = self.model.prompt_encoder.get_dense_pe()
            sparse, dense = self.model.prompt_encoder(clicks, None, mask)
            low_res = mask_decoder(embedding, position, sparse, dense)[0].float()
            logits = self.torch.nn.functional.interpolate(
                low_res, (self.spec.image_size,) * 3, mode="trilinear", align_corners=False
            )
            return low_res, logits[:, 0]

        return decode

    def _pass(self) -> Callable[..., tuple[Any, Any, Any]]:
        """(embedding, clicks or None, mask, label, roi) -> loss, low-resolution logits, logits."""
        decode, score = self._decoder(), self._compiled(self._loss)

        def one_pass(
            embedding: Any, clicks: Any, mask: Any, label: Any, roi: Any
        ) -> tuple[Any, Any, Any]:
            low_res, logits = decode(embedding, clicks, mask)
            return score(logits, label, roi), low_res, logits

        return one_pass

    def _loss(self, logits: Any, label: Any, roi: Any) -> Any:
        return recipe.loss(self.torch, logits, label, roi, self.cfg.loss)

    def _in_dtype(self, function: Callable[..., Any]) -> Callable[..., Any]:
        reduced = self.cfg.model.compute_dtype == "bfloat16"

        def autocast(*arguments: Any) -> Any:
            with self.torch.autocast(self.device, self.torch.bfloat16, enabled=reduced):
                return function(*arguments)

        return autocast

    def _image(self, batch: Sample) -> Any:
        return self.torch.from_numpy(np.moveaxis(batch.image, -1, 1).copy()).to(self.device)

    def _masks(self, batch: Sample) -> tuple[Any, Any]:
        label, roi = (
            self.torch.from_numpy(x.astype(bool)).to(self.device) for x in (batch.label, batch.roi)
        )
        return label, roi

    def _embedding(self, count: int) -> Any:
        shape = count, self.spec.prompt_width, *(self.spec.grid,) * 3
        return self.torch.randn(shape, device=self.device)

    def _no_mask(self, count: int) -> Any:
        return self.torch.zeros((count, 1, *(self.spec.mask_size,) * 3), device=self.device)
