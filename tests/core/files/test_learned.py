"""A run that learned nothing, or whose file holds something else, is never a success; a run that learned always is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.files import LearnedNothingError, check_learned, load_embedding, save_embedding

from .conftest import WIDTHS, concept


def vectors(seed: int, rows: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.02 * torch.randn(rows, width, generator=generator) for name, width in WIDTHS["SDXL"].items()}


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 4), step=st.sampled_from([1e-4, 5e-3, 1.0]))
def test_any_true_step_is_learning(seed, rows, step):
    before = vectors(seed, rows)
    after = {name: value + step * torch.sign(torch.randn_like(value)) for name, value in before.items()}
    check_learned(before, after)
    check_learned(before, after, {name: value.clone() for name, value in after.items()})


@given(seed=st.integers(0, 2**31), encoder=st.sampled_from(["clip_l", "clip_g"]), row=st.integers(0, 2))
def test_one_vector_that_did_not_move_is_found(seed, encoder, row):
    before, after = vectors(seed), vectors(seed + 1)
    after[encoder][row] = before[encoder][row]
    with pytest.raises(LearnedNothingError, match=f"{encoder}: vector {row} is the initial one"):
        check_learned(before, after)


@given(seed=st.integers(0, 2**31), decay=st.floats(1e-6, 0.5))
def test_weight_decay_alone_is_no_learning(seed, decay):
    before = vectors(seed)
    after = {name: value * (1 - decay) for name, value in before.items()}
    with pytest.raises(LearnedNothingError, match=r"changed in length only|is the initial one"):
        check_learned(before, after)


def test_adamw_without_a_gradient_is_no_learning_and_with_one_is():
    before = torch.randn(1, 768) * 0.02
    for gradient, learned in ((torch.zeros(1, 768), False), (torch.randn(1, 768), True)):
        weight = before.clone().requires_grad_()
        optimizer = torch.optim.AdamW([weight], lr=5e-3, weight_decay=1e-2)
        for _ in range(300):
            weight.grad = gradient.clone()
            optimizer.step()
        if learned:
            check_learned({"clip_l": before}, {"clip_l": weight})
        else:
            with pytest.raises(LearnedNothingError, match="length only"):
                check_learned({"clip_l": before}, {"clip_l": weight})


def test_vectors_that_are_not_finite_or_changed_shape_are_found():
    before = vectors(0)
    with pytest.raises(LearnedNothingError, match="not finite"):
        check_learned(before, {name: value * float("nan") for name, value in before.items()})
    with pytest.raises(LearnedNothingError, match="became"):
        check_learned(before, {name: value[:1] for name, value in vectors(1).items()})
    with pytest.raises(LearnedNothingError, match="got"):
        check_learned(before, {"clip_l": vectors(1)["clip_l"]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_file_must_hold_what_was_learned(tmp_path, dtype):
    before, learned = concept(seed=1), concept(seed=2)
    read = load_embedding(save_embedding(learned, tmp_path, dtype=dtype)).vectors
    check_learned(before.vectors, learned.vectors, read, stored=dtype)
    initial = load_embedding(save_embedding(before, tmp_path, "initial", dtype=dtype)).vectors
    one_bit_off = {name: value.clone() for name, value in read.items()}
    one_bit_off["clip_g"][0, 0] = torch.nextafter(one_bit_off["clip_g"][0, 0], torch.tensor(9.0))
    for wrong in (initial, {"clip_l": read["clip_l"]}, one_bit_off):
        with pytest.raises(LearnedNothingError, match="file read back"):
            check_learned(before.vectors, learned.vectors, wrong, stored=dtype)
