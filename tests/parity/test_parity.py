"""The port against the authors' PyTorch model, every parameter random, float32."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `test`")
pytest.importorskip("medim", reason="needs the extra `test`")

import medim  # noqa: E402

from converters import sam_med3d  # noqa: E402
from rtsam_jax.models.prompt_encoder import Prompts  # noqa: E402
from tests.parity import cases  # noqa: E402
from tests.parity.gradients import gradient_errors  # noqa: E402
from tests.parity.reference import Pair, build_pair, recorded_entropy  # noqa: E402
from tests.parity.undone import UNDONE, Undone  # noqa: E402

TOLERANCE = 1e-5
UNDONE_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def pair() -> Pair:
    return build_pair()


@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: c.name)
def test_equal_weights_give_equal_numbers(pair: Pair, case: cases.Case) -> None:
    assert case.error(pair) <= TOLERANCE


@pytest.mark.parametrize(
    ("undone", "case"),
    [
        pytest.param(u, case, id=f"trap {u.trap}: {u.mistake}: {case.name}")
        for u in UNDONE
        for case in u.cases
    ],
)
def test_undoing_a_trap_shows(pair: Pair, undone: Undone, case: cases.Case) -> None:
    with undone.patch(pair.model):
        assert case.error(pair) > UNDONE_TOLERANCE


def test_every_reproduced_trap_is_undone_somewhere() -> None:
    assert {undone.trap for undone in UNDONE} == {1, 2, 3, 4, 5, 7, 8, 9}


def test_attention_is_neither_uniform_nor_saturated(pair: Pair) -> None:
    """Otherwise errors in the logits could not reach the outputs."""
    inputs = cases.WINDOWED_BLOCK.inputs(pair), cases.DECODER.inputs(pair)
    with torch.no_grad(), recorded_entropy() as seen:
        for case in (cases.WINDOWED_BLOCK, cases.GLOBAL_BLOCK):
            case.reference(pair.torch_model, inputs[0])
        cases.DECODER.reference(pair.torch_model, inputs[1])
    assert len(seen) == 2 + 7
    assert all(0.2 < entropy < 0.95 for _, entropy in seen), seen


def test_zero_initialised_tables_are_random_here(pair: Pair) -> None:
    for key, array in pair.state.items():
        assert array.std() > 0, key
        if "rel_pos" in key:
            assert array.std() >= 0.1, key


def test_gradients_of_the_decoder(pair: Pair) -> None:
    for name, error in gradient_errors(pair).items():
        assert error <= 1e-4, name


def test_the_parameters_are_the_published_number(pair: Pair) -> None:
    params, _ = sam_med3d.to_flax(pair.state, "vit_b_ori")
    reference = sum(p.numel() for p in pair.torch_model.parameters())
    assert sam_med3d.parameter_count(params) == reference == 100_509_232


def test_round_trip_is_bit_equal_and_the_original_loads_it(pair: Pair, tmp_path) -> None:
    """PyTorch file -> weights folder -> PyTorch file, by the command, at full size."""
    source = tmp_path / "source.pth"
    torch.save({"model_state_dict": pair.torch_model.state_dict(), "epoch": 1}, source)
    sam_med3d.main([str(source), str(tmp_path / "weights")])
    source.unlink()
    sam_med3d.main(["--to-torch", str(tmp_path / "weights"), str(tmp_path / "back.pth")])
    content = torch.load(tmp_path / "back.pth", weights_only=True)["model_state_dict"]
    with torch.device("meta"):
        original = medim.create_model("SAM-Med3D")
    original.load_state_dict(content, strict=True, assign=True)
    for key, tensor in original.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), pair.state[key], strict=True)


def test_box_corners_are_new_parameters_that_matter(pair: Pair) -> None:
    """Trap 6: the reference cannot embed a box, so nothing is converted for it."""
    with pytest.raises((IndexError, RuntimeError)):
        pair.torch_model.prompt_encoder(None, torch.from_numpy(cases.BOX.reshape(1, 6)), None)
    params, report = sam_med3d.to_flax(pair.state, "vit_b_ori")
    assert "prompt_encoder.corner_embed" not in params
    assert "prompt_encoder.corner_embed" in report.newly_initialised
    same_corner = np.repeat(cases.BOX[:, :1], 2, axis=1)
    minimum, maximum = pair.model.prompt_encoder(Prompts(box=same_corner), 1).tokens[0]
    np.testing.assert_allclose(
        minimum - maximum, pair.corners[0] - pair.corners[1], rtol=1e-4, atol=1e-5
    )
