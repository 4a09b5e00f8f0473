"""Whoever wants to stop is heard while captions are drawn and guessed, of which no event tells."""

import pytest
import torch

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.tiny import load_tiny
from contextual_inversion.core.prompts.captions import AT_ONCE, SplitCaptions
from contextual_inversion.core.training.contextualizer.held_out import BATCH, drawn
from contextual_inversion.core.training.contextualizer.pretraining import PretrainSettings, pretrain_contextualizer
from contextual_inversion.core.world.sources import WorldCaptions


class Stop(BaseException):
    """As ComfyUI's Cancel, no Exception."""


class Counted:
    """Captions of the world, and how many were asked for."""

    def __init__(self) -> None:
        self.source, self.asked = WorldCaptions(), 0
        self.name, self.one_by_one, self.state = self.source.name, True, self.source.state

    def draw(self, count, generator):
        self.asked += count
        return self.source.draw(count, generator)


@pytest.fixture(scope="module")
def encoder():
    return DiffusersModel.from_tiny(load_tiny()).text_encoders["clip_l"]


def settings(**changes):
    options = {"preset": "tiny", "steps": 1, "batch": 2, "warmup": 0, "vocabulary_captions": 50, "held_out": 100_000}
    return PretrainSettings(**{**options, **changes})


@pytest.mark.parametrize("calls", [1, 3])
def test_a_hundred_thousand_captions_are_not_drawn_for_whoever_stops(encoder, calls):
    source, left = Counted(), [calls]

    def between():
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    with pytest.raises(Stop):
        next(iter(pretrain_contextualizer(encoder, source, settings(), between=between)))
    assert source.asked <= 100 + calls * (AT_ONCE + BATCH / 0.05) * 2


def test_it_is_heard_at_the_end_too_and_the_steps_are_kept(encoder, tmp_path):
    ended = [False]

    def between():
        if ended[0]:
            raise Stop

    chosen = settings(held_out=80, checkpoint_dir=tmp_path)
    run = pretrain_contextualizer(encoder, WorldCaptions(), chosen, between=between)

    def listen():
        for event in run:
            ended[0] = getattr(event, "step", 0) == 1

    with pytest.raises(Stop):
        listen()
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("count", [1, 7, 150])
def test_the_captions_of_a_seed_are_those_drawn_one_by_one(count, held_out):
    class OneByOne(WorldCaptions):
        one_by_one = False

    alone, together = (torch.Generator().manual_seed(5) for _ in range(2))
    expected = SplitCaptions(OneByOne(), held_out).draw(count, alone)
    assert SplitCaptions(WorldCaptions(), held_out).draw(count, together) == expected
    assert torch.equal(alone.get_state(), together.get_state())
    again = torch.Generator().manual_seed(5)
    assert list(drawn(SplitCaptions(WorldCaptions(), held_out), count, again)) == expected
