"""What a training holds and looks at does not grow with its pictures, prompts and steps: counted, never timed."""

import pytest
import torch

pytest.importorskip("diffusers")

from contextual_inversion.cli.bench import growth
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.tiny import load_tiny


@pytest.fixture(scope="module")
def model():
    return DiffusersModel.from_tiny(load_tiny())


def test_prompts_are_all_different_and_of_one_length():
    prompts = growth.written(30_000)
    assert len(set(prompts)) == 30_000
    assert {len(prompt.split()) for prompt in prompts} == {6}
    assert all(prompt.count("{}") == 1 for prompt in prompts)


@pytest.mark.parametrize(("pictures", "prompts"), [(1, 1), (9, 1), (1, 300)])
def test_a_step_encodes_two_prompts_and_asks_the_unet_for_the_same_rows(model, pictures, prompts, monkeypatch):
    """Of instances and of CoRe, and CoRe's reference beside them, whatever there is to choose from."""
    encoder, rows, samples = model.text_encoders["clip_l"], [], []
    encode, predict = encoder.encode, model.predict
    with growth._run(model, pictures, prompts) as run:
        growth._steps(run, 2)
        monkeypatch.setattr(encoder, "encode", lambda inputs, ids: (rows.append(len(inputs)), encode(inputs, ids))[1])
        monkeypatch.setattr(model, "predict", lambda z, *rest: (samples.append(len(z)), predict(z, *rest))[1])
        growth._steps(run, 1)
    assert 2 <= sum(rows) <= 3
    assert samples == [1, 2]  # the reference, and both passes of the word together


def test_no_tensor_and_one_number_a_loss_stay_of_a_step(model):
    with growth._run(model, 2, 2) as run:
        growth._steps(run, 8)  # both prompts and both pictures have been seen, and the optimiser has its state
        run._fetch()
        before = growth.tensors()
        growth._steps(run, 10)
        run._fetch()
        assert growth.tensors() == before
        assert {len(column) for column in run.history.values.values()} == {18}
        assert run.history._waiting == []


def test_nothing_stays_of_a_training(model):
    found = growth._again(model, 3, 4)["growth_trainings_tensors"]
    assert found[1] == found[2]


def test_what_is_remembered_of_prompts_has_an_end(model):
    with growth._run(model, 1, 1500) as run:
        growth._steps(run, 1)
        assert run.prepared.prompts._tokenized.cache_info().currsize == 1024
        assert run.prepared.prompts._with_words.cache_info().maxsize == 1024


def test_the_figures_are_of_what_was_asked_for(model):
    found = growth.growth_figures(model, pictures=(1, 2), prompts=(1, 3), steps=20, trainings=2, window=3)
    assert set(found["growth_pictures"]) == {1, 2}
    assert set(found["growth_prompts"]) == set(found["growth_start_s"]) == {1, 3}
    assert set(found["growth_steps"]) == set(found["growth_memory_mb"]) == set(found["growth_tensors"]) == {10, 20}
    assert len(found["growth_trainings_mb"]) == len(found["growth_trainings_tensors"]) == 2


def test_tensors_are_counted():
    before = growth.tensors()
    held = [torch.zeros(1) for _ in range(5)]
    assert growth.tensors() == before + len(held)
