"""Gradients of the mask decoder's parameters: ours against PyTorch's autograd."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from converters.sam_med3d import find_rule
from tests.parity.cases import DECODER_INPUTS, our_decoder, reference_decoder
from tests.parity.reference import Pair

_rng = np.random.default_rng(5)
_PROBES = {
    "logits": _rng.normal(size=(2, 32, 32, 32, 4)).astype(np.float32) / 100,
    "iou": _rng.normal(size=(2, 4)).astype(np.float32),
}


def gradient_pairs(pair: Pair) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Parameter -> (ours, reference), of a random linear functional of logits and IoUs."""
    graph, decoder, rest = nnx.split(
        pair.model, nnx.All(nnx.PathContains("mask_decoder"), nnx.Param), ...
    )

    @jax.jit
    def gradient(decoder: nnx.State, rest: nnx.State) -> nnx.State:
        def functional(decoder: nnx.State) -> jax.Array:
            out = our_decoder(nnx.merge(graph, decoder, rest), DECODER_INPUTS)
            return sum((jnp.vdot(_PROBES[k], out[k]) for k in _PROBES), jnp.zeros(()))

        return jax.grad(functional)(decoder)

    ours = {
        ".".join(map(str, path)): np.asarray(variable[...])
        for path, variable in nnx.to_flat_state(gradient(decoder, rest))
    }

    torch_decoder = pair.torch_model.mask_decoder
    torch_decoder.zero_grad()
    out = reference_decoder(pair.torch_model, DECODER_INPUTS)
    torch.stack([(torch.from_numpy(_PROBES[k]) * out[k]).sum() for k in _PROBES]).sum().backward()
    theirs = {f"mask_decoder.{name}": p.grad for name, p in torch_decoder.named_parameters()}

    pairs = {}
    for name, gradient_here in ours.items():
        rule, (key,) = find_rule(name, gradient_here.shape)
        pairs[name] = gradient_here, rule.transform.to_flax(theirs.pop(key).numpy())
    assert not theirs, f"no counterpart for {sorted(theirs)}"
    return pairs


def is_key_bias(name: str) -> bool:
    """A bias on all keys shifts every logit of a row alike: its true gradient is 0."""
    return name.endswith("k_proj.bias")


def gradient_errors(pair: Pair) -> dict[str, float]:
    """Relative error per parameter and, under "all", of the whole vector.

    Key biases have no gradient but rounding; their error is measured against the key kernel's
    gradient, at which scale rounding is to be judged.
    """
    pairs = gradient_pairs(pair)
    errors = {}
    for name, (a, b) in pairs.items():
        scale = pairs[name.replace("bias", "kernel")][1] if is_key_bias(name) else b
        errors[name] = float(np.linalg.norm(a - b) / np.linalg.norm(scale))
    whole = [np.concatenate([np.ravel(p[i]) for p in pairs.values()]) for i in (0, 1)]
    errors["all"] = float(np.linalg.norm(whole[0] - whole[1]) / np.linalg.norm(whole[1]))
    return errors
