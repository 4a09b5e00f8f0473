"""Everything that can be trained, by one loop: what moves and what does not, and that every law of it holds for all."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from rounding import equal_but_for_rounding
from stub_model import StubModel, pictures
from test_mlm import regularizer as mlm
from test_trainer import PROMPTS, Pull
from training_child import TINY_METHODS

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files.errors import LearnedNothingError
from contextual_inversion.core.maths.context import embedding_loss
from contextual_inversion.core.maths.schedule import add_noise
from contextual_inversion.core.models.lora import from_lora
from contextual_inversion.core.models.low_rank import LowRankDelta, apply_deltas, text_layers, text_weight_layers
from contextual_inversion.core.models.protocol import Conditioning, TokenMeans
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.models.words import one_slot_a_block
from contextual_inversion.core.prompts.tokens import input_embeddings, tokenize_prompt
from contextual_inversion.core.training.contextualizer.masking import mask_rows, masked_inputs
from contextual_inversion.core.training.methods import METHODS
from contextual_inversion.core.training.prompt_repair import repair
from contextual_inversion.core.training.regularizers import context
from contextual_inversion.core.training.regularizers.context import CoReRegularizer
from contextual_inversion.core.training.run.checkpoint import CheckpointMismatchError
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import NonFiniteLossError, train
from contextual_inversion.core.training.weights import RankedModel, TrainableWeights
from contextual_inversion.core.training.word import starting_word

every_method = pytest.mark.parametrize("method", TINY_METHODS)


def core():
    return CoReRegularizer(PROMPTS, embedding_weight=0.1, attention_weight=1.0)


def prediction(model, concept, prompt="a photo of a {}"):
    """The UNet's answer to a fixed latent under a prompt with the concept, everything of the concept in force."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    deltas = from_lora(model, concept.lora) if concept.lora else {}
    with torch.no_grad(), apply_deltas(model, deltas):
        encodings = encode_prompts(model, [prompt], vectors=concept.vectors, layers=concept.layer_vectors)
        return model.predict(latents, torch.tensor([3, 700]), model.conditioning(encodings, None).expand(2))


def parts(concept):
    """All numbers of a concept."""
    return [*concept.vectors.values(), *(concept.layer_vectors or {}).values(), *(concept.lora or {}).values()]


def test_the_list_of_methods_is_tried_whole():
    assert {keywords["method"] for keywords in TINY_METHODS.values()} | {"ti"} == set(METHODS)


@every_method
def test_what_a_method_is_about_moves_and_nothing_else(run, method):
    model = StubModel()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    keywords = TINY_METHODS[method]
    finished = run(model, regularizers=[core()], **keywords)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())
    settings, concept = TrainSettings(class_word="dog", **keywords), finished.concept
    changes = from_lora(model, concept.lora) if concept.lora else {}
    assert all(isinstance(one, LowRankDelta) == bool(settings.low_rank) for one in changes.values())
    unet = {name for name in changes if not name.startswith("clip_l.")}
    assert bool(unet) == (settings.trains.unet != "none")
    text = text_layers(model) if settings.low_rank else text_weight_layers(model)
    assert set(changes) - unet == (set(text) if settings.trains.text_encoder != "none" else set())
    if method == "dreambooth":
        norms = [changes[name] for name, part in text.items() if isinstance(part, torch.nn.LayerNorm)]
        assert len(norms) == 2
        assert all(one.weight.any() and one.bias.any() for one in norms)
    if settings.only_layers:
        assert unet == {name for name in model.linear_layers() if name.endswith(settings.only_layers)}
    if settings.trains.unet == "keys and values":
        assert unet == {name for name in model.linear_layers() if name.endswith(("to_k", "to_v"))}
    assert (concept.layer_vectors is not None) == (settings.trains.word in ("layers", "blocks"))
    if not settings.trains.learns_word:
        rows = model.encoders[0].table()[model.encoders[0].tokenize("sks dog" if settings.identifier else "dog")]
        assert torch.equal(concept.vectors["clip_l"], rows.detach())


@every_method
def test_every_method_learns(run, method):
    # The same latents, noise and timesteps before and after.
    def error(concept):
        model, settings = StubModel(), TrainSettings(class_word="dog", batch=64, steps=1)
        with train(model, pictures(), settings) as judge:
            next(judge)
            deltas = from_lora(model, concept.lora) if concept and concept.lora else {}
            if concept is not None:
                with torch.no_grad(), apply_deltas(model, deltas):
                    encodings = encode_prompts(
                        model, ["a photo of a {}"], vectors=concept.vectors, layers=concept.layer_vectors
                    )
                    judge.prepared.objective._instance_conditioning = lambda _: model.conditioning(
                        encodings, None
                    ).expand(64)
                    return float(judge.prepared.objective.gather(0, lambda _: None)[1])
            return float(judge.prepared.objective.gather(0, lambda _: None)[1])

    keywords = {**TINY_METHODS[method], "learning_rate": 0.05, "weight_rate": 3e-3, "steps": 60, "batch": 6}
    assert error(run(StubModel(), **keywords).concept) < error(None)


@every_method
def test_gradients_of_core_reach_what_is_trained(method):
    """CoRe alone (no diffusion loss) reaches the word, or the text encoder and the UNet, whichever is trained."""
    settings = TrainSettings(class_word="dog", batch=2, steps=1, **TINY_METHODS[method])
    with (
        train(StubModel(), pictures(), settings) as plain,
        train(StubModel(), pictures(), settings, regularizers=[core()]) as regularized,
    ):
        found = []
        for running in (plain, regularized):
            next(running)
            with torch.no_grad():
                for name, value in running.learner.leaves.items():
                    # Away from the start, where CoRe's losses are 0 and a low-rank change has but half a gradient.
                    value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
            running.prepared.objective.gather(0, running.learner.backward)
            found.append({name: leaf.grad.clone() for name, leaf in running.learner.leaves.items()})
    reached = {name for name in found[0] if not torch.allclose(found[0][name], found[1][name], rtol=1e-4, atol=0)}
    assert {name for name in found[0] if name.startswith("clip_l")} <= reached
    # Of the UNet what comes before a cross-attention's softmax: the values of the last one change no attention.
    unet = {name for name in found[0] if not name.startswith("clip_l")}
    assert {name for name in unet if "to_k" in name or "to_q" in name} <= reached


@every_method
def test_gradients_of_mlm_reach_the_word_and_the_text_encoder_alone(method):
    settings = TrainSettings(class_word="dog", batch=2, steps=1, **TINY_METHODS[method])
    found = []
    for regularizers in ([], [mlm(StubModel(), beside_class=False)]):
        with train(StubModel(), pictures(), settings, regularizers=regularizers) as running:
            next(running)
            with torch.no_grad():
                for name, value in running.learner.leaves.items():
                    # Away from the start, where a low-rank change has but half a gradient.
                    value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
            losses, _ = running.prepared.objective.gather(0, running.learner.backward)
            found.append({name: leaf.grad.clone() for name, leaf in running.learner.leaves.items()})
    assert losses["mlm/clip_l"] > 0
    reached = {name for name in found[0] if not torch.equal(found[0][name], found[1][name])}
    assert reached == {name for name in found[0] if name.startswith("clip_l")}


@every_method
def test_mlm_reads_the_prompts_that_the_word_is_trained_in(method):
    """With an identifier the word ends in the class word by itself, and it is not written again."""
    model, regularizer = StubModel(), mlm(StubModel(), beside_class=False)
    settings = TrainSettings(class_word="dog", batch=2, steps=1, **{**TINY_METHODS[method], "vectors": 1})
    encoder = model.text_encoders["clip_l"]
    words = tokenize_prompt(encoder, "a {} at sea", words="sks dog" if settings.identifier else "dog")
    expected, _ = input_embeddings(encoder, [words], None)
    with train(model, pictures(), settings, regularizers=[regularizer]) as running:
        next(running)
        (guesser,), copies = regularizer._encoders, running.prepared.prompts.word.copies["clip_l"]
        for copy in range(len(copies)):
            row = guesser.row("a {} at sea").of_copy(copy, copies.shape[1])
            batch = mask_rows([row], torch.ones(1, guesser.encoder.max_length), 0.15)
            inputs = masked_inputs(encoder.table(), batch, guesser.psi.mask, copies.flatten(0, 1))
            assert torch.equal(inputs, expected[:, : inputs.shape[1]])


@every_method
def test_core_compares_with_the_model_as_it_came(monkeypatch, method):
    """However far the training is, its reference is what the untouched model says and sees of the class word."""
    references = {}
    for name in ("embedding_loss", "attention_loss"):

        def keeping(loss, name, ours, theirs, *rest, **keywords):
            references[name] = theirs
            return loss(ours, theirs, *rest, **keywords)

        monkeypatch.setattr(context, name, partial(keeping, getattr(context, name), name))
    regularizer = CoReRegularizer(PROMPTS[:1], embedding_weight=0.1, attention_weight=1.0, attention_batch=3)
    with train(StubModel(), pictures(), settings_of(method), regularizers=[regularizer]) as running:
        next(running)
        with torch.no_grad():
            for leaf in running.learner.leaves.values():
                leaf.add_(0.1)
        running.prepared.objective.gather(0, lambda _: None)
        draws = running.prepared.objective.instances.draw(0)
        alpha_bar_t = running.prepared.objective.instances.noising.alpha_bar[draws.timesteps]
        z_t = add_noise(running.prepared.bank.latents[draws.rows], draws.noise, alpha_bar_t)
    untouched, probe = StubModel(), TokenMeans()
    with torch.no_grad():
        encodings = encode_prompts(untouched, PROMPTS[:1], words="dog")
        untouched.predict(z_t, draws.timesteps, untouched.conditioning(encodings, None).expand(3), probe)
    said = references["embedding_loss"]
    equal_but_for_rounding(said, encodings["clip_l"].tokens[0].expand_as(said))
    for ours, theirs in zip(references["attention_loss"], probe.layers, strict=True):
        equal_but_for_rounding(ours, theirs)


def test_core_looks_at_what_every_layer_is_told():
    model = StubModel()
    with train(model, pictures(), settings_of("xti"), regularizers=[CoReRegularizer(PROMPTS[:1])]) as running:
        next(running)
        with torch.no_grad():
            for leaf in running.learner.leaves.values():
                leaf.add_(torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0)))
            losses, _ = running.prepared.objective.gather(0, lambda _: None)
            places = running.regularizers[0]._positions["clip_l", PROMPTS[0]]
            reference = encode_prompts(model, PROMPTS[:1], words="dog")["clip_l"].tokens[0]
            each = [
                embedding_loss(
                    encode_prompts(model, PROMPTS[:1], vectors={"clip_l": one})["clip_l"].tokens[0], reference, *places
                )
                for one in running.concept.layer_vectors["clip_l"]
            ]
    assert each[0] != each[1]
    equal_but_for_rounding(losses["core/embedding"], torch.stack(each).mean())


@every_method
def test_core_is_zero_where_every_method_starts(method):
    """With the class word as the word and nothing changed yet."""
    keywords = {**TINY_METHODS[method], "identifier": "", "steps": 1, "vectors": 1}
    with train(StubModel(), pictures(), TrainSettings(class_word="dog", **keywords), regularizers=[core()]) as running:
        next(running)
        losses, _ = running.prepared.objective.gather(0, lambda _: None)
    assert losses["core/embedding"] < 1e-6
    assert losses["core/attention"] < 1e-12


@pytest.mark.parametrize("encoders", [1, 2])
def test_equal_vectors_for_all_layers_are_plain_textual_inversion(encoders):
    losses, gradients = [], []
    for method in ("ti", "xti"):
        model = StubModel(encoders=encoders)
        settings = TrainSettings(class_word="dog", batch=4, steps=1, method=method, vectors=2)
        with train(model, pictures(), settings, regularizers=[core()]) as running:
            next(running)
            values, total = running.prepared.objective.gather(0, running.learner.backward)
            losses.append({**values, "total": total})
            gradients.append({name: leaf.grad for name, leaf in running.learner.vectors.items()})
    for name in losses[0]:
        torch.testing.assert_close(losses[1][name], losses[0][name], rtol=1e-6, atol=1e-9)
    for name, gradient in gradients[0].items():
        # The layers' vectors share the gradient of the one vector. Pooled outputs, of SDXL, see their mean.
        equal_but_for_rounding(gradients[1][name].sum(0), gradient)


def test_each_layer_sees_its_own_vector_only():
    model = StubModel()
    generator = torch.Generator().manual_seed(0)
    layers = torch.randn(2, 1, 32, generator=generator)
    vectors = {"clip_l": layers.mean(0)}
    both = encode_prompts(model, ["a {}"], vectors=vectors, layers={"clip_l": layers})["clip_l"]
    for index, own in enumerate(layers):
        alone = encode_prompts(model, ["a {}"], vectors={"clip_l": own})["clip_l"]
        torch.testing.assert_close(both.layers[index], alone.tokens)
    conditioning = model.conditioning({"clip_l": both}, None)
    mixed = Conditioning.cat([conditioning, Conditioning(both.tokens)])
    assert torch.equal(mixed.layers[:, 0], both.layers[:, 0])
    assert torch.equal(mixed.layers[1, 1], both.tokens[0])


def test_a_block_of_the_unet_is_a_slot():
    sd1 = [f"down_blocks.{b}.attentions.{a}" for b in range(3) for a in range(2)] + ["mid_block.attentions.0"]
    sd1 += [f"up_blocks.{b}.attentions.{a}" for b in (1, 2, 3) for a in range(3)]
    slots = one_slot_a_block([f"{name}.transformer_blocks.0.attn2" for name in sd1])
    assert slots == (0, 0, 1, 1, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6)


@every_method
def test_nothing_learned_is_an_error(run, method):
    keywords = {**TINY_METHODS[method], "optimizer_options": {"weight_decay": 0.0}, "diffusion_weight": 0.0}
    with pytest.raises(LearnedNothingError, match="masks leave something"):
        run(StubModel(), **keywords)


@every_method
def test_a_loss_that_is_not_finite_keeps_the_last_good_numbers(run, method):
    class Breaks(Pull):
        def __call__(self, step):
            terms = super().__call__(step)
            if len(self.drawn) == self.at + 1:
                for term in terms.losses.values():
                    term.value.data.fill_(float("nan"))
            return terms

    breaks = Breaks(0.1)
    breaks.at = 4
    finished = run(StubModel(), regularizers=[breaks], **TINY_METHODS[method])
    assert finished.step == 4
    assert "not finite at step 5" in finished.stopped
    good = train(StubModel(), pictures(), settings_of(method, steps=6), regularizers=[Pull(0.1)])
    with good:
        for event in good:
            if getattr(event, "step", 0) == 4:
                break
        assert all(torch.equal(a, b) for a, b in zip(parts(finished.concept), parts(good.concept), strict=True))
    breaks.at, breaks.drawn = 0, []
    with pytest.raises(NonFiniteLossError):
        run(StubModel(), regularizers=[breaks], **TINY_METHODS[method])


def settings_of(method, **keywords):
    return TrainSettings(**{"class_word": "dog", "batch": 3, "log_every": 2, **TINY_METHODS[method], **keywords})


@every_method
def test_stopping_keeps_and_a_resume_ends_in_the_same_bits(tmp_path, method):
    with train(StubModel(), pictures(), settings_of(method, steps=5), regularizers=[core()]) as whole:
        *_, last = whole
    stopping = settings_of(method, steps=5, checkpoint_dir=tmp_path)
    with train(StubModel(), pictures(), stopping, regularizers=[core()]) as running:
        for event in running:
            if getattr(event, "step", 0) == 3:
                running.stop("enough")
    assert event.stopped == "enough"
    assert parts(event.concept)
    with train(StubModel(), pictures(), stopping, regularizers=[core()], resume=tmp_path) as resumed:
        *_, end = resumed
    assert all(torch.equal(a, b) for a, b in zip(parts(end.concept), parts(last.concept), strict=True))
    with (
        pytest.raises(CheckpointMismatchError, match="method"),
        train(
            StubModel(), pictures(), settings_of("xti" if method == "ti" else "ti", steps=5), resume=tmp_path
        ) as other,
    ):
        next(other)


@every_method
def test_the_concept_means_what_was_trained(run, method):
    """The preview of the run, and the concept given to the model anew, draw the same."""
    settings = settings_of(method, steps=3)
    model = StubModel()
    with train(model, pictures(), settings) as running:
        *_, last = running
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), running.prepared.weights.on() if running.prepared.weights else torch.no_grad():
            encodings = running.prepared.prompts.with_concept(["a photo of a {}"])
            here = model.predict(
                latents, torch.tensor([3, 700]), running.prepared.prompts.conditioning(encodings).expand(2)
            )
    equal_but_for_rounding(prediction(StubModel(), last.concept), here)


def test_a_checkpoint_in_which_other_layers_learned_is_refused(tmp_path, run):
    """As one from before the norms of text encoders were trained."""
    older, keywords = StubModel(), {**TINY_METHODS["dreambooth"], "steps": 3}
    linear = older.encoders[0].linear_layers()
    older.encoders[0].weight_layers = lambda: linear
    run(older, checkpoint_dir=tmp_path, **keywords)
    with pytest.raises(CheckpointMismatchError, match="other layers"):
        run(StubModel(), resume=tmp_path, **keywords)


def test_a_concept_that_does_not_fit_the_method_is_refused(run):
    xti = run(StubModel(), method="xti", steps=2).concept
    with pytest.raises(ValueError, match="train it on with XTI"):
        run(StubModel(), initial=xti)
    refined = run(StubModel(), initial=xti, method="refine", steps=2).concept
    assert torch.equal(refined.layer_vectors["clip_l"], xti.layer_vectors["clip_l"])
    with pytest.raises(ValueError, match="changes the model's weights already"):
        run(StubModel(), initial=refined, method="refine", steps=2)
    with pytest.raises(ValueError, match="unknown method"):
        TrainSettings(class_word="dog", method="magic")


@pytest.mark.parametrize("method", ["xti", "refine"])
def test_a_concept_of_another_model_is_refused(run, method):
    xti = run(StubModel(), method="xti", steps=2).concept
    fewer = replace(xti, layer_vectors={name: value[1:] for name, value in xti.layer_vectors.items()})
    with pytest.raises(ValueError, match="layers of another model"):
        run(StubModel(), initial=fewer, method=method)
    with pytest.raises(ValueError, match="layers of another model"), repair(StubModel(), [fewer], "a {}").run as other:
        next(other)
    # A word for one text encoder on a model with two, as SD 1 on SDXL.
    plain = run(StubModel(), steps=2).concept
    for wrong in (plain, xti):
        with pytest.raises(ValueError, match=r"clip_g"):
            run(StubModel(encoders=2), initial=wrong, method=method)
    refined = run(StubModel(), initial=plain, method="refine", steps=2).concept
    elsewhere = {key.replace("attentions_0", "attentions_9"): value for key, value in refined.lora.items()}
    with pytest.raises(ValueError, match="another kind of model"):
        repair(StubModel(), [replace(refined, lora=elsewhere)], "a {}")


def ranked(least, rank=4, seed=3):
    """Trainable weights of the stub model that are not 0, with that least rank."""
    model = StubModel()
    weights = TrainableWeights(model, settings_of("second stage", rank=rank, least_rank=least))
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in weights.leaves.values():
            value.copy_(0.2 * torch.randn(value.shape, generator=draws))
    return model, weights


def test_the_rank_of_a_text_encoders_change_knows_no_timestep():
    settings = TrainSettings(class_word="dog", method="dreambooth-lora", least_rank=1)
    weights = TrainableWeights(StubModel(), settings)
    assert set(weights.names) - set(weights.ranked) == set(text_layers(StubModel()))


def test_weights_that_are_not_finite_were_not_learned(run, monkeypatch):
    """Settings refuse such a rate by name; whatever else makes weights that are none is found at the end."""
    monkeypatch.setattr("contextual_inversion.core.training.settings.require_finite_fields", lambda _: None)
    with pytest.raises(LearnedNothingError, match=r"the change of .* is not finite"):
        run(StubModel(), method="refine", steps=1, weight_rate=float("inf"))


def test_a_word_with_a_vector_for_every_layer_goes_on_with_one_for_every_block():
    """The layers of a block share one: it is that of the block's first layer."""
    model = StubModel()
    names = ["down_blocks.0.attentions.0.attn2", "down_blocks.0.attentions.1.attn2", "mid_block.attentions.0.attn2"]
    model.cross_attention_layers = lambda: names
    layers = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0))
    concept = Concept("thing", "dog", {"clip_l": layers.mean(0)}, layer_vectors={"clip_l": layers})
    word = starting_word(model, settings_of("xti-blocks", vectors=1), concept)
    assert word.slot_of_layer == (0, 0, 1)
    assert torch.equal(word.copies["clip_l"], layers[[0, 2]])


def test_a_low_rank_change_starts_from_the_seed_anew_for_every_layer():
    first, same, other = (
        {
            name: value.detach()
            for name, value in TrainableWeights(StubModel(), settings_of("second stage", seed=seed)).leaves.items()
            if name.endswith(".a") and value.shape[0] == 32
        }
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    starts = [*first.values(), *other.values()]
    assert len({value.sum().item() for value in starts}) == len(starts) > 4


def predicted(model, timesteps):
    """The answer to fixed latents, one for each timestep."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).expand(len(timesteps), -1, -1, -1)
    given = model.conditioning(encode_prompts(model, ["a photo of a dog"]), None).expand(len(timesteps))
    return model.predict(latents, torch.tensor(timesteps), given)


def test_only_the_directions_of_a_timestep_learn():
    for timestep, active in ((999, 1), (500, 2), (0, 4)):
        model, weights = ranked(1)
        with weights.on():
            predicted(RankedModel(model, weights), [timestep]).square().sum().backward()
        for name, value in weights.leaves.items():
            moved = value.grad.abs().sum(dim=0 if name.endswith(".a") else 1) > 0
            assert moved.tolist() == [row < active for row in range(4)], (name, timestep)


def test_each_sample_has_the_rank_of_its_own_timestep():
    """A mixed batch is what a smaller LoRA draws for each of its samples; outside, the whole LoRA acts on all."""
    model, weights = ranked(1)
    timesteps = [0, 500, 999]
    with torch.no_grad(), weights.on():
        mixed = predicted(RankedModel(model, weights), timesteps)
        whole = predicted(model, timesteps)
        with weights.off():
            assert torch.equal(predicted(RankedModel(model, weights), timesteps), predicted(model, timesteps))
    for row, active in enumerate((4, 2, 1)):
        cut = {
            name: LowRankDelta(weights.leaves[f"{name}.a"][:, :active], weights.leaves[f"{name}.b"][:active])
            for name in weights.names
        }
        with torch.no_grad(), apply_deltas(model, cut):
            equal_but_for_rounding(mixed[row], predicted(model, timesteps)[row])
    equal_but_for_rounding(mixed[0], whole[0])
    assert (mixed[2] - whole[2]).abs().max() > 1e-3


@pytest.mark.parametrize("passes", ["joint", "separate"])
def test_the_rank_by_timestep_is_the_same_with_checkpointed_layers(run, passes):
    """Recomputed in the backward pass, after other passes of other timesteps, a layer has its own ranks again."""
    keywords = {**TINY_METHODS["second stage, rank by timestep"], "passes": passes, "weight_rate": 1e-2}
    found = [
        run(StubModel(), regularizers=[core()], gradient_checkpointing=checkpointing, **keywords).concept
        for checkpointing in (False, True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*map(parts, found), strict=True))
    full = run(StubModel(), regularizers=[core()], **{**keywords, "least_rank": 4}).concept
    plain = run(StubModel(), regularizers=[core()], **{**keywords, "least_rank": None}).concept
    for ours, theirs in zip(parts(full), parts(plain), strict=True):
        equal_but_for_rounding(ours, theirs)
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(parts(found[0]), parts(plain), strict=True))


def test_a_least_rank_needs_a_lora_that_has_it():
    for method, least in (("ti", 1), ("refine-all", 1), ("refine", 5), ("refine", 0)):
        with pytest.raises(ValueError, match=r"least rank|no LoRA"):
            TrainSettings(class_word="dog", method=method, least_rank=least)
