"""A filled template: the same context whatever fills it, within the limit, gradient in the concept's rows alone."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contextual_inversion.core.prompts.sets import EVALUATION_SETS, built_in_set, built_in_sets
from contextual_inversion.core.prompts.tokens import ORDINARY, input_embeddings, tokenize_prompt

TEMPLATES = [template for name in (*built_in_sets(), *EVALUATION_SETS) for template in built_in_set(name).prompts]
PIECES = st.sampled_from(
    ["", "a photo of a ", "two cats, ", "S", " in the snow", "!", "'s hat, 2024", " (café) ", "ß-ñ 日本"]
)
WORDS = st.sampled_from(["dog", "teddy bear", "Chow Chow", "antidisestablishmentarianism", "x"])
# The fixtures hold no state that an example could change.
laws = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@laws
@given(before=PIECES, after=PIECES, again=st.booleans(), rows=st.integers(1, 5), words=WORDS)
def test_both_fillings_share_their_context(encoder, before, after, again, rows, words):
    template = before + "{}" + after + ("{}" if again else "")
    concept = tokenize_prompt(encoder, template, rows=rows)
    plain = tokenize_prompt(encoder, template, words=words)
    for prompt in (concept, plain):
        assert len(prompt.ids) == len(prompt.concept_rows) == encoder.max_length
        assert prompt.ids[0] == encoder.bos
        assert prompt.ids.index(encoder.eos) == prompt.eot
        assert set(prompt.ids[prompt.eot + 1 :]) <= {encoder.pad}
        assert sorted((*prompt.fill, *prompt.context)) == list(range(prompt.eot + 1))
    assert [concept.ids[i] for i in concept.context] == [plain.ids[i] for i in plain.context]
    occurrences = 1 + again
    assert len(concept.fill) == rows * occurrences
    assert [concept.concept_rows[i] for i in concept.fill] == list(range(rows)) * occurrences
    assert [plain.ids[i] for i in plain.fill] == encoder.tokenize(words) * occurrences
    assert set(plain.concept_rows) == {ORDINARY}
    assert {concept.concept_rows[i] for i in concept.context} == {ORDINARY}
    # No mistaking a concept's position for the end or the padding.
    assert not {concept.ids[i] for i in concept.fill} & {encoder.bos, encoder.eos, encoder.pad}


@pytest.mark.parametrize("words", ["dog", "teddy bear"])
def test_words_give_the_ids_of_the_whole_sentence(clip_l, words):
    for template in TEMPLATES:
        whole = clip_l.tokenize(template.replace("{}", words))
        prompt = tokenize_prompt(clip_l, template, words=words)
        assert list(prompt.ids[: prompt.eot + 1]) == [clip_l.bos, *whole, clip_l.eos]


def test_an_ordinary_prompt_needs_nothing_to_fill_in(encoder):
    empty = tokenize_prompt(encoder, "")
    assert empty.ids == (encoder.bos, encoder.eos, *[encoder.pad] * (encoder.max_length - 2))
    assert empty.eot == 1
    assert tokenize_prompt(encoder, "a red ball").fill == ()


@laws
@given(rows=st.integers(1, 90), others=st.integers(0, 90))
def test_exactly_what_fits_is_accepted(encoder, rows, others):
    template = "{}" + " cat" * others
    room = encoder.max_length - 2
    if rows + others <= room:
        assert tokenize_prompt(encoder, template, rows=rows).eot == 1 + rows + others
        return
    with pytest.raises(ValueError, match=rf"takes {rows + others} tokens of {encoder.name}.*room for {room}$") as error:
        tokenize_prompt(encoder, template, rows=rows)
    assert repr(template) in str(error.value)


@pytest.mark.parametrize(
    ("template", "filling", "message"),
    [
        ("a {}", {}, "nothing was given"),
        ("a {}", {"rows": 1, "words": "dog"}, "not both"),
        ("a {}", {"rows": 0}, "at least one vector"),
        ("a {}", {"words": "  "}, "no token"),
        ("a {} <|endoftext|> on the grass", {"rows": 1}, "special token"),
        ("a {}", {"words": "<|startoftext|>"}, "special token"),
    ],
)
def test_what_cannot_be_filled_is_refused(encoder, template, filling, message):
    with pytest.raises(ValueError, match=message):
        tokenize_prompt(encoder, template, **filling)


@laws
@given(rows=st.integers(1, 4), seed=st.integers(0, 2**31), twice=st.booleans())
def test_the_gradient_is_that_of_the_rows_in_a_full_table(encoder, rows, seed, twice):
    """Against the obvious way: append the vectors to the table, look everything up, differentiate the whole table."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(rows, encoder.width, generator=generator, requires_grad=True)
    templates = ["a photo of a {} on the grass", "{}" + (" and {}" if twice else ""), "no concept at all"]
    prompts = [tokenize_prompt(encoder, template, rows=rows) for template in templates]
    weight = torch.randn(len(prompts), encoder.max_length, encoder.width, generator=generator)

    inputs, ids = input_embeddings(encoder, prompts, vectors)
    (gradient,) = torch.autograd.grad((inputs * weight).sum(), vectors)

    table = torch.cat([encoder.table().float(), vectors.detach()]).requires_grad_()
    size = encoder.table().shape[0]
    extended = torch.tensor(
        [
            [size + row if row != ORDINARY else id for id, row in zip(p.ids, p.concept_rows, strict=True)]
            for p in prompts
        ]
    )
    (full,) = torch.autograd.grad((table[extended] * weight).sum(), table)

    torch.testing.assert_close(gradient, full[size:])
    assert torch.equal(inputs.detach(), table.detach()[extended])
    assert ids.tolist() == [list(prompt.ids) for prompt in prompts]


def test_neither_the_table_nor_its_size_is_in_the_graph(clip_l):
    table = clip_l.table().clone().requires_grad_()
    before = table.detach().clone()
    frozen = type(clip_l)()
    frozen.weights = table
    vectors = torch.randn(1, clip_l.width, requires_grad=True)
    inputs, _ = input_embeddings(frozen, [tokenize_prompt(frozen, "a {}", rows=1)], vectors)
    inputs.square().sum().backward(retain_graph=True)
    assert table.grad is None
    assert torch.equal(table, before)
    assert _largest_saved(inputs.grad_fn) < clip_l.table().numel()


def _largest_saved(node) -> int:
    """The most numbers in any tensor that the graph keeps or has as a leaf."""
    names = [name for name in dir(node) if name.startswith("_saved_")]
    saved = [getattr(node, name) for name in names] + [getattr(node, "variable", None)]
    sizes = [value.numel() for value in saved if isinstance(value, torch.Tensor)]
    return max([0, *sizes, *(_largest_saved(parent) for parent, _ in node.next_functions if parent is not None)])


def test_both_branches_have_one_precision_and_equal_rows(encoder):
    """v* = class word puts exactly the class word's inputs in place: METHODS.md 1.11 starts from here."""
    template = "a {} on the grass"
    words = tokenize_prompt(encoder, template, words="dog")
    concept = tokenize_prompt(encoder, template, rows=1)
    reference, _ = input_embeddings(encoder, [words], None)
    (dog,) = encoder.tokenize("dog")
    ours, _ = input_embeddings(encoder, [concept], encoder.table()[dog : dog + 1].float())
    assert reference.dtype == ours.dtype == torch.float32
    assert torch.equal(reference, ours)


def test_a_first_call_under_inference_mode_leaves_gradients_alive(clip_l):
    prompts = [tokenize_prompt(clip_l, "a {} that only this test has seen", rows=2)]
    vectors = torch.randn(2, clip_l.width, requires_grad=True)
    with torch.inference_mode():
        input_embeddings(clip_l, prompts, vectors)
    input_embeddings(clip_l, prompts, vectors)[0].sum().backward()
    assert torch.equal(vectors.grad, torch.ones_like(vectors))


def test_wrong_vectors_are_named(clip_l):
    prompts = [tokenize_prompt(clip_l, "a {}", rows=2)]
    with pytest.raises(ValueError, match="no vectors were given"):
        input_embeddings(clip_l, prompts, None)
    for shape in [(1, clip_l.width), (3, clip_l.width), (2, clip_l.width + 1), (2,)]:
        with pytest.raises(ValueError, match=f"needs 2 vectors here, of width {clip_l.width}"):
            input_embeddings(clip_l, prompts, torch.zeros(shape))
    with pytest.raises(ValueError, match="no prompts"):
        input_embeddings(clip_l, [], None)
