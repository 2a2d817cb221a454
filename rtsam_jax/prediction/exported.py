"""A trained model as programs that run without this package: encoder and decoder in StableHLO.

    FOLDER/encoder.jax_export    image, ROI -> embedding, box; a serialised `jax.export.Exported`
    FOLDER/decoder.jax_export    embedding, box, text, clicks -> logits, probability, predicted IoU
    FOLDER/params.npz            what both take first: arrays by dotted name
    FOLDER/texts.npz             features of the tasks' sentences, where the model is told texts
    FOLDER/model.json            the checkpoint's own: preprocessing, prompts, tasks, calibration
    FOLDER/export.json           which weights these are, and the shapes that the programs take

Loading them takes JAX, numpy and flatbuffers; see docs/export.md.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export as jax_export

from rtsam_jax.data.json_file import write_json
from rtsam_jax.data.new_folder import new_folder
from rtsam_jax.errors import ExtraMissing
from rtsam_jax.models.layers import upsample
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.prediction.outputs import writing
from rtsam_jax.prediction.trained import Trained
from rtsam_jax.prompts.dose import box_from_roi
from rtsam_jax.text.prompt_set import encode_texts, make_table
from rtsam_jax.training.model_file import MODEL_FILE
from rtsam_jax.training.run import environment
from rtsam_jax.weights import flatten, nest

SCHEMA_VERSION = 1
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
ENCODER, DECODER = "encoder.jax_export", "decoder.jax_export"
PARAMS, TEXTS, ABOUT = "params.npz", "texts.npz", "export.json"

Arrays = Mapping[str, jax.Array]
Shapes = dict[str, jax.ShapeDtypeStruct]


def write_export(
    trained: Trained, folder: Path, *, platforms: Sequence[str], texts: bool = True
) -> None:
    """Exports a model into a folder, which appears whole or not at all.

    Args:
        folder: must not exist, or be empty.
        platforms: of `PLATFORMS`, those that the programs may be compiled for.
        texts: also the features of the tasks' sentences, where the model is told texts.

    Raises:
        ExtraMissing: flatbuffers is not installed.
        OutputExists, NotWritable: of the folder.
        RTSamError: of the language model, which features are made with.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ExtraMissing(
            "Programs cannot be serialised without flatbuffers; install it with "
            "pip install -e '.[export]'."
        )
    with writing(folder), new_folder(folder) as beside:
        if texts and trained.about.text_width:
            np.savez(beside / TEXTS, **task_texts(trained))
        encoder = export_encoder(trained, platforms)
        decoder = export_decoder(trained, platforms)
        (beside / ENCODER).write_bytes(encoder.serialize())
        (beside / DECODER).write_bytes(decoder.serialize())
        np.savez(beside / PARAMS, **jax.device_get(_flat(trained)))
        shutil.copyfile(trained.folder / MODEL_FILE, beside / MODEL_FILE)
        about = {
            "schema": SCHEMA_VERSION,
            "weights": trained.weights,
            "step": trained.step,
            "platforms": list(platforms),
            "encoder": _shapes(encoder, "image", "roi"),
            "decoder": _shapes(decoder, "crops", "text", "clicks"),
            "versions": environment()["versions"],
        }
        write_json(beside / ABOUT, about)


def export_encoder(trained: Trained, platforms: Sequence[str]) -> jax_export.Exported:
    """`(params, image [b, S, S, S, 1] float32, roi [b, S, S, S] uint8) -> crops`, any b from 1 on.

    Crops are a dict of `embedding` [b, g, g, g, C] and, where the model is told a box, `box`
    [b, 2, 3] and `box_valid` [b]. They are encoded one after the other, as `ClickModel` does: the
    memory needed is that of one.
    """

    def encode(params: Arrays, image: jax.Array, roi: jax.Array) -> dict[str, jax.Array]:
        model = _model(trained, params)
        crops = {"embedding": jax.lax.map(lambda one: model.encode(one[None])[0], image)}
        if trained.cfg.prompt.box:
            crops["box"], crops["box_valid"] = box_from_roi(roi)
        return crops

    (b,) = jax_export.symbolic_shape("b")
    shape = (b, *(trained.size,) * 3)
    image = jax.ShapeDtypeStruct((*shape, 1), jnp.float32)
    roi = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return jax_export.export(jax.jit(encode), platforms=platforms)(_shaped(trained), image, roi)


def export_decoder(trained: Trained, platforms: Sequence[str]) -> jax_export.Exported:
    """`(params, crops, text, clicks) -> answer`, all of them dicts, for any b, k and l from 1 on.

    `text` has `features` [b, l, C] float32 and `valid` [b, l] bool; or `task` [b] int32, the task's
    place in model.json; or nothing: as the model was trained. `clicks` has `points` [b, k, 3]
    float32, voxels of the crop, `labels` [b, k] int32 (1, 0, or -2 for an unused slot) and `mask`
    [b, m, m, m, 1] float32, the `low_res` of the answer before, zeros at first. An answer has
    `low_res`, `probability` [b, S, S, S] float32 and `iou` [b] float32.
    """

    def decode(params: Arrays, crops: Arrays, text: Arrays, clicks: Arrays) -> dict[str, jax.Array]:
        model, embedding = _model(trained, params), crops["embedding"]
        table = TextTable(text["features"], text["valid"]) if "features" in text else None
        row = jnp.arange(embedding.shape[0])  # a text of its own for each crop
        prompts = model.fixed_prompts(
            crops.get("box"), crops.get("box_valid"), text.get("task", row), table
        )
        prompts = prompts._replace(
            points=clicks["points"], point_labels=clicks["labels"], mask=clicks["mask"]
        )
        low_res, iou = model.decode(embedding, prompts)
        probability = jax.nn.sigmoid(upsample(low_res[..., 0], trained.size))
        return {"low_res": low_res, "probability": probability, "iou": iou[:, 0]}

    arguments = _decoder_arguments(trained)
    return jax_export.export(jax.jit(decode), platforms=platforms)(_shaped(trained), *arguments)


def task_texts(trained: Trained) -> dict[str, Any]:
    """What the model is told of a task alone, without a record.

    Returns:
        `features` [n, l, C] float32 and `valid` [n, l] bool; of each row `tasks` and `sentences`.

    Raises:
        RTSamError: of the language model.
    """
    trained.require_language_model()
    tasks = trained.about.tasks
    texts = [trained.prompt(task.name, {}) for task in tasks]
    features, valid = make_table(encode_texts(texts, trained.cfg.prompt))
    return {
        "features": np.asarray(features),
        "valid": np.asarray(valid),
        "tasks": np.array([task.name for task in tasks]),
        "sentences": np.array([task.sentence for task in tasks]),
    }


def _model(trained: Trained, params: Arrays) -> SAM3D:
    state = jax.tree.map(lambda leaf: leaf, trained.params)  # a copy, which is filled
    nnx.replace_by_pure_dict(state, nest(params))
    return nnx.merge(trained.graphdef, state)


def _flat(trained: Trained) -> dict[str, Any]:
    return flatten(nnx.to_pure_dict(trained.params))


def _shaped(trained: Trained) -> Shapes:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _flat(trained))


def _decoder_arguments(trained: Trained) -> tuple[Shapes, Shapes, Shapes]:
    spec, prompt = get_spec(trained.cfg.model.preset), trained.cfg.prompt
    b, k, length = jax_export.symbolic_shape("b, k, l")

    def of(dtype: jax.typing.DTypeLike, *shape: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, *shape), dtype)

    crops = {"embedding": of(jnp.float32, *(spec.grid,) * 3, spec.prompt_width)}
    if prompt.box:
        crops |= {"box": of(jnp.float32, 2, 3), "box_valid": of(jnp.bool_)}
    text = {}
    if prompt.task == "text":
        width = trained.about.text_width
        text = {"features": of(jnp.float32, length, width), "valid": of(jnp.bool_, length)}
    elif prompt.task == "embedding":
        text = {"task": of(jnp.int32)}
    clicks = {
        "points": of(jnp.float32, k, 3),
        "labels": of(jnp.int32, k),
        "mask": of(jnp.float32, *(spec.mask_size,) * 3, 1),
    }
    return crops, text, clicks


def _shapes(program: jax_export.Exported, *names: str) -> dict[str, object]:
    """Arguments after the parameters and result, such as `float32[b, 32, 32, 32, 1]`."""

    def said(array: jax.core.ShapedArray) -> str:
        return f"{array.dtype}[{', '.join(map(str, array.shape))}]"

    arguments, _ = jax.tree.unflatten(program.in_tree, map(said, program.in_avals))
    result = jax.tree.unflatten(program.out_tree, map(said, program.out_avals))
    return {"arguments": dict(zip(names, arguments[1:], strict=True)), "result": result}
