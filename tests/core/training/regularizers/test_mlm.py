"""MLM in training: what is masked, what gets a gradient, and what a weight of zero costs (METHODS.md 2.5, 2.6, 2.9)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rounding import equal_but_for_rounding
from stub_model import StubModel

from contextual_inversion.core.maths.mlm import LAMBDA_MLM, cross_entropy
from contextual_inversion.core.networks.contextualizer import (
    PRESETS,
    Contextualizer,
    ContextualizerShape,
    EncoderIdentity,
    ShortEncoder,
    initialise,
)
from contextual_inversion.core.prompt_sets import rich_prompts
from contextual_inversion.core.prompts.rich import ListedPrompts, with_class
from contextual_inversion.core.prompts.tokens import input_embeddings, tokenize_prompt
from contextual_inversion.core.training.contextualizer.masking import (
    caption_row,
    mask_rows,
    masked_inputs,
    nameable_ids,
    prompt_row,
)
from contextual_inversion.core.training.methods import METHODS
from contextual_inversion.core.training.prompts import PromptEncoder, StepView
from contextual_inversion.core.training.regularizers.context import CoReRegularizer
from contextual_inversion.core.training.regularizers.mlm import (
    NARROW_FLOW_LAMBDA,
    NARROW_LAMBDA,
    NARROW_LAMBDA_BESIDE_WEIGHTS,
    MLMRegularizer,
    recommended_lambda,
    recommended_mlm,
)
from contextual_inversion.core.training.regularizers.registry import Added
from contextual_inversion.core.training.word import Word
from contextual_inversion.core.world.captions import BACKGROUND_PHRASES
from contextual_inversion.core.world.prompts import EVALUATION_BACKGROUNDS

PROMPTS = ListedPrompts(
    ("a {} in the snow", "a red {} on a beach", "my {} beside a lake at night", "a drawing of a {}")
)


def contextualizer(encoder, seed=0, token_ids=None):
    psi = Contextualizer(EncoderIdentity.of(encoder), PRESETS["tiny"], token_ids)
    return initialise(psi, encoder.table(), torch.Generator().manual_seed(seed)).requires_grad_(True)


def regularizer(model, prompts=PROMPTS, **keywords):
    psis = [contextualizer(encoder) for encoder in model.text_encoders.values()]
    return MLMRegularizer(psis, prompts, **{"batch": 4, "weight": 0.1, "rho": 0.5, **keywords})


def test_a_contextualizer_that_reads_fewer_positions_loses_nothing_but_padding(model):
    """The text encoder is causal: with all positions, cut to the first ones, the loss is the same to rounding."""
    encoder = model.text_encoders["clip_l"]
    psi = Contextualizer(EncoderIdentity.of(encoder), ContextualizerShape(2, 4, 2, positions=14))
    initialise(psi, encoder.table(), torch.Generator().manual_seed(1))
    short = ShortEncoder(encoder, 14)
    assert (short.max_length, short.width, short.fingerprint) == (14, encoder.width, encoder.fingerprint)
    vectors = leaves(model)["clip_l"]
    losses = []
    for one in (short, encoder):
        rows = [
            prompt_row(one, tokenize_prompt(one, prompt, rows=1), None, all_names(encoder))
            for prompt in PROMPTS.prompts
        ]
        uniform = torch.rand((len(rows), 14), generator=torch.Generator().manual_seed(2))
        uniform = torch.nn.functional.pad(uniform, (0, one.max_length - 14), value=1.0)
        batch = mask_rows(rows, uniform, 0.5)
        outputs = one.encode(masked_inputs(one.table(), batch, psi.mask, vectors), batch.ids).tokens[:, :14]
        masked = batch.masked // one.max_length * 14 + batch.masked % one.max_length
        losses.append(cross_entropy(psi(outputs, masked), batch.targets).mean())
    equal_but_for_rounding(losses[0], losses[1])
    regular = MLMRegularizer(psi, ListedPrompts(("a {} " + "very " * 12 + "far",)), weight=1.0)
    with pytest.raises(ValueError, match=r"12|14|long|fit"):
        regular.prepare(model, "dog", 1)


def step_of(model, vectors, seed=0, class_word="dog"):
    """`vectors` (n, d), or (S, n, d) for a copy for each of S slots."""
    first = next(iter(vectors.values()))
    prompts = PromptEncoder(model, Word(vectors, None, range(len(first)) if first.ndim == 3 else None), None)
    zeros = torch.zeros(1)
    generator = torch.Generator().manual_seed(seed)
    return StepView(model, zeros, zeros, class_word, generator, prompts)


def leaves(model, length=1, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(length, encoder.width, generator=generator).requires_grad_(True)
        for name, encoder in model.text_encoders.items()
    }


def all_names(encoder):
    return np.ones(len(encoder.table()), dtype=bool)


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("class_word", [None, "dog", "guinea pig", "grasshopper"])
def test_ten_thousand_draws_never_mask_a_special_the_concept_or_its_class_word(model, length, class_word):
    encoder = model.text_encoders["clip_l"]
    text = "a {} in the snow" if class_word is None else with_class("a {} in the snow", class_word)
    prompt = tokenize_prompt(encoder, text, rows=length)
    row = prompt_row(encoder, prompt, class_word, all_names(encoder))
    uniform = torch.rand((10_000, encoder.max_length), generator=torch.Generator().manual_seed(0))
    masked = mask_rows([row] * 10_000, uniform, 0.15).masked % encoder.max_length
    context = encoder.tokenize("a"), encoder.tokenize("in the snow")
    first = 1 + len(context[0])
    after = prompt.eot - len(context[1])
    assert set(masked.tolist()) == {*range(1, first), *range(after, prompt.eot)}
    draws = 10_000 * sum(map(len, context))
    assert abs(len(masked) / draws - 0.15) < 3 * (0.15 * 0.85 / draws) ** 0.5


def test_a_class_word_that_does_not_follow_the_concept_is_an_error(model):
    encoder = model.text_encoders["clip_l"]
    with pytest.raises(ValueError, match="does not follow"):
        prompt_row(encoder, tokenize_prompt(encoder, "a {} cat", rows=1), "dog", all_names(encoder))
    with pytest.raises(ValueError, match="does not follow"):
        prompt_row(encoder, tokenize_prompt(encoder, "a {}", rows=1), "dog", all_names(encoder))


def test_tokens_that_the_contextualizer_cannot_name_are_not_masked(model):
    encoder = model.text_encoders["clip_l"]
    known = encoder.tokenize("snow")
    names = nameable_ids(contextualizer(encoder, token_ids=known).rows)
    row = caption_row(encoder, "a dog in the snow", names)
    assert row.ids[row.maskable].tolist() == known


def test_a_caption_is_cut_to_the_encoder_and_keeps_its_end(model):
    encoder = model.text_encoders["clip_l"]
    row = caption_row(encoder, "word " * 50, all_names(encoder))
    assert row.ids[0] == encoder.bos
    assert row.ids[-1] == encoder.eos
    assert row.end == encoder.max_length - 1
    object.__setattr__(encoder, "tokenize", lambda text: [encoder.bos, 5, encoder.eos, 6, encoder.eos])
    assert caption_row(encoder, "one<|endoftext|>two", all_names(encoder)).ids[:4].tolist() == [
        encoder.bos,
        5,
        6,
        encoder.eos,
    ]
    object.__delattr__(encoder, "tokenize")
    short = caption_row(encoder, "one two", all_names(encoder))
    assert short.ids[3] == encoder.eos
    assert short.end == 3
    assert int(short.maskable.sum()) == 2


def test_without_masks_the_inputs_are_those_of_any_prompt(model):
    encoder = model.text_encoders["clip_l"]
    vectors = leaves(model, 2)["clip_l"]
    prompts = [tokenize_prompt(encoder, text, rows=2) for text in ("a {} in the snow", "my {} at night")]
    rows = [prompt_row(encoder, prompt, None, all_names(encoder)) for prompt in prompts]
    batch = mask_rows(rows, torch.rand(2, encoder.max_length), 0.0)
    expected, ids = input_embeddings(encoder, prompts, vectors)
    assert torch.equal(masked_inputs(encoder.table(), batch, torch.ones(encoder.width), vectors), expected)
    assert torch.equal(batch.ids, ids)


def test_masked_positions_hold_the_mask_row_and_targets_what_was_there(model):
    encoder = model.text_encoders["clip_l"]
    row = caption_row(encoder, "a dog in the snow", all_names(encoder))
    batch = mask_rows([row] * 3, torch.rand(3, encoder.max_length), 0.5)
    mask = torch.full((encoder.width,), 7.0)
    inputs = masked_inputs(encoder.table(), batch, mask)
    here = torch.zeros(batch.ids.numel(), dtype=torch.bool)
    here[batch.masked] = True
    assert (inputs.flatten(0, 1)[here] == 7).all()
    assert torch.equal(inputs.flatten(0, 1)[~here], encoder.table()[batch.ids.flatten()[~here]].detach())
    assert torch.equal(batch.targets, batch.ids.flatten()[here])
    assert not inputs.requires_grad  # though the table does


def test_changing_the_concept_changes_the_logits_of_a_masked_word_before_it(model):
    encoder, psi = model.text_encoders["clip_l"], contextualizer(model.text_encoders["clip_l"])
    prompt = tokenize_prompt(encoder, "some snow and a {}", rows=1)
    row = prompt_row(encoder, prompt, None, all_names(encoder))
    uniform = torch.ones(1, encoder.max_length)
    uniform[0, 2] = 0  # "snow"
    batch = mask_rows([row], uniform, 0.5)
    assert batch.masked.tolist() == [2]
    assert prompt.fill[0] > 2

    def guess(vectors):
        outputs = encoder.encode(masked_inputs(encoder.table(), batch, psi.mask, vectors), batch.ids).tokens
        return outputs[0, 2], psi(outputs, batch.masked)

    vectors = leaves(model)["clip_l"]
    (here, logits), (there, others) = guess(vectors), guess(vectors + 1)
    assert torch.equal(here, there)  # the causal encoder cannot say it
    assert (logits - others).abs().max() > 1e-4  # psi can
    (gradient,) = torch.autograd.grad(cross_entropy(logits, batch.targets).sum(), vectors)
    assert gradient.abs().max() > 0


def test_only_the_concept_gets_a_gradient(model):
    mlm, vectors = regularizer(model), leaves(model)
    with model.session():
        mlm.prepare(model, "dog", 1)
        term = mlm(step_of(model, vectors)).losses["mlm/clip_l"]
        (term.weight * term.value).backward()
    assert vectors["clip_l"].grad.abs().max() > 0
    frozen = [*model.parameters(), *(value for psi in mlm.given for value in psi.parameters())]
    assert all(value.grad is None for value in frozen)
    assert not any(value.requires_grad for value in mlm._encoders[0].psi.parameters())


@pytest.mark.parametrize("slots", [None, 2])
def test_the_term_is_the_mean_over_masked_positions_of_all_prompts(model, slots):
    """Against the whole way round: all logits, a loop, and the textbook cross-entropy. A word with a copy for each slot
    says every prompt once with each (METHODS.md 2.6), masked anew."""
    mlm, vectors, length = regularizer(model), leaves(model), 2 if slots else 1
    if slots:
        vectors = {"clip_l": torch.stack([leaves(model, length, seed)["clip_l"] for seed in range(slots)])}
    psi, encoder = mlm.given[0], model.text_encoders["clip_l"]
    mlm.prepare(model, "dog", length)
    value = mlm(step_of(model, vectors, seed=4)).losses["mlm/clip_l"].value

    generator = torch.Generator().manual_seed(4)
    chosen = [with_class(text, "dog") for text in PROMPTS.draw(4, generator)]
    copies = vectors["clip_l"] if slots else [vectors["clip_l"]]
    uniform = torch.rand((4 * len(copies), encoder.max_length), generator=generator)
    prompts = [tokenize_prompt(encoder, text, rows=length) for text in chosen]
    inputs, ids = (torch.cat(p) for p in zip(*(input_embeddings(encoder, prompts, one) for one in copies), strict=True))
    found = []
    for row, prompt in enumerate(prompts * len(copies)):
        spared = {0, *prompt.fill, prompt.fill[-1] + 1}
        for place in range(prompt.eot):
            if place not in spared and uniform[row, place] < 0.5:
                inputs = inputs.clone()
                inputs[row, place] = psi.mask
                found.append((row, place))
    logits = psi(encoder.encode(inputs, ids).tokens).log_softmax(dim=-1)
    expected = -torch.stack([logits[row, place, ids[row, place]] for row, place in found]).mean()
    equal_but_for_rounding(value, expected)


def test_no_masked_token_gives_zero_and_a_gradient_of_zero(model):
    mlm, vectors = regularizer(model, rho=1e-9), leaves(model)
    mlm.prepare(model, "dog", 1)
    term = mlm(step_of(model, vectors)).losses["mlm/clip_l"]
    assert term.value.item() == 0
    (gradient,) = torch.autograd.grad(term.value, vectors["clip_l"])
    assert (gradient == 0).all()


def test_every_text_encoder_has_its_own_term_and_its_own_gradient():
    model = StubModel(encoders=2)
    mlm, vectors = regularizer(model), leaves(model)
    mlm.prepare(model, "dog", 1)
    terms = mlm(step_of(model, vectors)).losses
    assert set(terms) == {"mlm/clip_l", "mlm/clip_g"}
    for name, term in terms.items():
        own = torch.autograd.grad(term.value, list(vectors.values()), allow_unused=True, retain_graph=True)
        reached = {encoder for encoder, value in zip(vectors, own, strict=True) if value is not None}
        assert f"mlm/{reached.pop()}" == name
        assert not reached


def test_the_draw_is_the_generators_alone(model):
    mlm, vectors = regularizer(model), leaves(model)
    mlm.prepare(model, "dog", 1)
    one, same, other = (mlm(step_of(model, vectors, seed)).losses["mlm/clip_l"].value for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_weight_of_zero_is_plain_textual_inversion_bit_for_bit(model, run):
    mlm = regularizer(model, weight=0.0)
    plain, regularized = run(model), run(model, regularizers=[mlm])
    assert torch.equal(plain.concept.vectors["clip_l"], regularized.concept.vectors["clip_l"])
    assert torch.equal(plain.losses["diffusion"], regularized.losses["diffusion"])
    assert mlm._encoders == []  # nothing was copied or tokenized either


def test_it_trains_beside_core_and_repeats_itself(model, run):
    def trained(*weights):
        core = CoReRegularizer(PROMPTS.prompts, embedding_weight=0.1, attention_weight=0.1)
        return run(model, regularizers=[core, *(regularizer(model, weight=weight) for weight in weights)])

    once, again, without = trained(0.3), trained(0.3), trained()
    assert torch.equal(once.concept.vectors["clip_l"], again.concept.vectors["clip_l"])
    assert not torch.equal(once.concept.vectors["clip_l"], without.concept.vectors["clip_l"])
    assert torch.isfinite(once.losses["mlm/clip_l"]).all()
    # the first step's CoRe terms are untouched: every regularizer draws from its own generator
    assert once.losses["core/embedding"][0] == without.losses["core/embedding"][0]


def test_it_lowers_its_own_loss(model, run):
    high = run(model, regularizers=[regularizer(model, weight=30.0, batch=16)], steps=60, learning_rate=0.05)
    low = run(model, regularizers=[regularizer(model, weight=1e-9, batch=16)], steps=60, learning_rate=0.05)
    assert high.losses["mlm/clip_l"][-20:].mean() < low.losses["mlm/clip_l"][-20:].mean()


def test_inputs_of_any_precision_give_a_float32_loss(model):
    mlm, vectors = regularizer(model), leaves(model)
    mlm.prepare(model, "dog", 1)
    with torch.autocast("cpu", torch.bfloat16):
        term = mlm(step_of(model, vectors)).losses["mlm/clip_l"]
    assert term.value.dtype == torch.float32
    assert torch.isfinite(term.value)


def test_a_contextualizer_of_another_encoder_is_refused_with_both_names(model):
    other = StubModel(seed=1)
    mlm = regularizer(other)
    with pytest.raises(ValueError, match=f"{other.encoders[0].fingerprint}.*{model.encoders[0].fingerprint}"):
        mlm.prepare(model, "dog", 1)
    big = regularizer(StubModel(encoders=2))
    with pytest.raises(ValueError, match=r"clip_g.*but the model has clip_l"):
        MLMRegularizer(big.given[1], PROMPTS).prepare(model, "dog", 1)


def test_prompts_that_do_not_fit_are_refused_before_training(model):
    with pytest.raises(ValueError, match="room for"):
        regularizer(model, ListedPrompts(("a {}", "a {} " + "and " * 20))).prepare(model, "dog", 1)
    with pytest.raises(ValueError, match="room for"):
        regularizer(model, rich_prompts("pets")).prepare(model, "dog", 12)


def test_several_class_words_are_refused_before_training(model):
    with pytest.raises(ValueError, match=r"MLM knows one class word, .* dog, toy"):
        regularizer(model).prepare(model, ("dog", "toy"), (range(1), range(1, 2)))


def test_prompts_without_a_word_to_guess_are_refused_before_training(model):
    """The loss was 0 at every step, and nobody was told."""
    with pytest.raises(ValueError, match="knows no word"):
        regularizer(model, ListedPrompts(("{}",))).prepare(model, "dog", 1)
    encoder = model.text_encoders["clip_l"]
    few = contextualizer(encoder, token_ids=[encoder.bos, encoder.eos, *encoder.tokenize("night")])
    with pytest.raises(ValueError, match="knows no word"):
        MLMRegularizer(few, ListedPrompts(("a {} in the snow",)), weight=0.1).prepare(model, "dog", 1)
    MLMRegularizer(few, PROMPTS, weight=0.1).prepare(model, "dog", 1)
    MLMRegularizer(few, ListedPrompts(("{}",)), weight=0.0).prepare(model, "dog", 1)


def test_loaded_in_inference_mode_it_still_trains(model):
    with torch.inference_mode():
        mlm = regularizer(model)
    mlm.prepare(model, "dog", 1)
    vectors = leaves(model)
    mlm(step_of(model, vectors)).losses["mlm/clip_l"].value.backward()
    assert vectors["clip_l"].grad.abs().max() > 0


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"rho": 0}, {"rho": 1.5}, {"batch": 0}])
def test_settings_that_mean_nothing_are_errors(model, wrong):
    with pytest.raises(ValueError, match="needed"):
        regularizer(model, **wrong)
    with pytest.raises(ValueError, match="one contextualizer"):
        MLMRegularizer([], PROMPTS)


def test_lambda_is_that_of_the_method_on_stable_diffusions_encoders_alone():
    """METHODS.md 2.8 no. 5."""
    v = SimpleNamespace(prediction_type="v_prediction")
    wide, narrow = (
        SimpleNamespace(text_encoders={"clip_l": SimpleNamespace(width=width)}, schedule=v) for width in (768, 128)
    )
    found = {method: recommended_lambda(wide, method) for method in METHODS}
    assert {one for one in found if found[one] == LAMBDA_MLM == 1e-4} == {"ti", "refine", "refine-all"}
    assert found["xti"] == found["xti-blocks"] == 2.5e-4
    assert found["custom-diffusion"] == found["dreambooth-lora"] == found["dreambooth"] == 5e-4
    own = {method: recommended_lambda(narrow, method) for method in METHODS}
    beside = {method for method, kind in METHODS.items() if kind.trains_weights}
    assert {own[method] for method in beside} == {NARROW_LAMBDA_BESIDE_WEIGHTS}
    assert {own[method] for method in METHODS if method not in beside} == {NARROW_LAMBDA}
    narrow.schedule = SimpleNamespace(prediction_type="flow")
    assert {recommended_lambda(narrow, method) for method in METHODS} == {NARROW_FLOW_LAMBDA}


def test_the_recommended_one_suits_the_model_and_names_no_evaluated_background():
    from contextual_inversion.core.models.diffusers_text import DiffusersTextEncoder
    from contextual_inversion.core.models.tiny import load_contextualizer, tiny_tokenizer
    from contextual_inversion.core.models.tiny.load import load_part

    encoder = DiffusersTextEncoder("clip_l", load_part("text_encoder"), tiny_tokenizer())
    v = SimpleNamespace(prediction_type="v_prediction")
    model = SimpleNamespace(text_encoders={"clip_l": encoder}, schedule=v, device=torch.device("cpu"))
    chosen = recommended_mlm(model)
    chosen.prepare(model, "butterfly", 2)
    assert chosen.weight == recommended_lambda(model) > LAMBDA_MLM
    assert recommended_mlm(model, weight=0.5, rho=0.9).state()["weight"] == 0.5
    assert not chosen.beside_class  # as in the prompts that the word is trained in
    drawn = chosen.prompts.draw(500, torch.Generator().manual_seed(0))
    held_out = [phrase for name in EVALUATION_BACKGROUNDS for phrase in BACKGROUND_PHRASES[name]]
    assert not any(phrase in prompt for prompt in drawn for phrase in held_out)
    found = load_contextualizer().provenance["held_out"]
    assert found["accuracy_interval"][0] > 1.5 * found["floor_most_frequent_interval"][1]
    assert found["accuracy_interval"][0] > 1.5 * found["floor_shuffled_context_interval"][1]


def test_a_contextualizer_of_another_model_is_found_before_pictures_are_encoded(model):
    psi = contextualizer(StubModel(seed=9).text_encoders["clip_l"])
    options = {"contextualizers": psi, "prompts": PROMPTS, "rho": 0.5, "batch": 2}
    with pytest.raises(ValueError, match=r"trained on the text encoder .*, but here is "):
        Added("mlm", {**options, "weight": 0.1}).fitting(model, "ti")
    assert Added("mlm", {**options, "weight": 0.0}).fitting(model, "ti").weight == 0
