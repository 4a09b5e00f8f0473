"""The nearest readable word of a vector (METHODS.md 3.4, 3.6)."""

import torch

from contextual_inversion.core.models.vocabulary import candidates, hard_words, is_readable


class Encoder:
    """Five tokens: two words, a piece of one, a number, and a row of degenerate norm."""

    bos, eos, pad = 5, 6, 6
    texts = ("dog</w>", "cat</w>", "ca", "12</w>", "xxx</w>", "<start>", "<end>")

    def __init__(self):
        self.rows = torch.eye(7)
        self.rows[4] *= 1e-6

    def table(self):
        return self.rows

    def token_text(self, token):
        return self.texts[token]


def test_who_may_be_named():
    assert list(candidates(Encoder()).ids) == [0, 1]
    assert list(candidates(Encoder(), readable=False).ids) == [0, 1, 2, 3]
    assert [is_readable(text) for text in ("dog</w>", "dog", "a</w>", "café</w>", "x2</w>")] == [True] + [False] * 4


def test_the_hard_token_of_each_vector():
    wanted = torch.tensor([[0.1, 0.9, 5, 0, 0, 9, 9], [0.5, 0.1, 0, 0, 0, 0, 0.0]])
    assert hard_words({"clip_l": Encoder()}, {"clip_l": wanted}) == "cat dog"


def test_the_encoders_agree_on_one_word():
    one, two = torch.zeros(1, 7), torch.zeros(1, 7)
    one[0, :2], two[0, :2] = torch.tensor([0.8, 0.6]), torch.tensor([0.0, 1.0])
    encoders = {"clip_l": Encoder(), "clip_g": Encoder()}
    assert hard_words(encoders, {"clip_l": one, "clip_g": two}) == "cat"
    assert hard_words({"clip_l": Encoder()}, {"clip_l": one}) == "dog"
