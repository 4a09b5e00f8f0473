"""Our embedding files in stock diffusers: the pipeline's text encoder gives what our vectors give in memory."""

import pytest
import torch

from contextual_inversion.core.files import load_concept, save_bundle, save_embedding
from contextual_inversion.core.files.typed_names import obstacles
from contextual_inversion.core.models.tiny.tokenizer import tiny_tokenizer

from .conftest import concept

WIDTH = 32


@pytest.fixture(scope="module")
def loaders():
    return pytest.importorskip("diffusers.loaders")


@pytest.fixture
def pipeline(loaders):
    """What a Stable Diffusion pipeline is to the textual inversion loader: a tokenizer and a small random encoder."""
    from diffusers import DiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    class TextPipeline(DiffusionPipeline, loaders.TextualInversionLoaderMixin):
        def __init__(self, tokenizer, text_encoder):
            super().__init__()
            self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=49408, eos_token_id=49407, bos_token_id=49406, **shape))
    # Made anew: a deep copy of it decodes otherwise (transformers 5.23), and compel decodes prompts.
    return TextPipeline(tiny_tokenizer.__wrapped__(), encoder.eval())


@pytest.mark.parametrize("layout", ["encoders", "emb_params"])
@pytest.mark.parametrize("rows", [1, 3])
def test_diffusers_reads_our_embedding(tmp_path, pipeline, layout, rows):
    learned = concept({"clip_l": WIDTH}, rows=rows)
    path = save_embedding(learned, tmp_path, layout=layout)
    pipeline.load_textual_inversion(str(tmp_path), weight_name=path.name, token="<dog>")
    prompt = pipeline.maybe_convert_prompt("a photo of a <dog> on the grass", pipeline.tokenizer)
    ids = pipeline.tokenizer(prompt, return_tensors="pt", padding="max_length").input_ids
    table = pipeline.text_encoder.get_input_embeddings()
    new = (ids[0] >= 49408).nonzero().flatten()
    assert len(new) == rows
    assert torch.equal(table(ids[0, new]).detach(), learned.vectors["clip_l"])


NAMES = ["my-dog", "my_dog", "dog.v2", "a+b", "dog2", "a--b", "My-Dog", "naïve-dog", "gizmo_2"]


@pytest.mark.parametrize("reader", ["diffusers", "compel"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_who_can_type_a_name_is_what_the_program_does(tmp_path, pipeline, reader, rows, name):
    """diffusers' own pipeline, and compel on it: all rows reach the encoder, or the table says that they do not."""
    learned = concept({"clip_l": WIDTH}, rows=rows)
    path = save_embedding(learned, tmp_path)
    pipeline.load_textual_inversion(str(path), token=f"<{name}>")
    seen = []
    prompt = f"a photo of a <{name}> on the grass"
    if reader == "compel":
        import compel

        manager = compel.DiffusersTextualInversionManager(pipeline)
        watch = pipeline.text_encoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs.get("input_ids", args[0] if args else None)),
            with_kwargs=True,
        )
        compel.Compel(pipeline.tokenizer, pipeline.text_encoder, textual_inversion_manager=manager)(prompt)
        watch.remove()
        ids = seen[0].flatten()
    else:
        ids = torch.tensor(pipeline.tokenizer(pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)).input_ids)
    reached = pipeline.text_encoder.get_input_embeddings().weight[ids[ids >= 49408]].detach()
    whole = reached.shape == learned.vectors["clip_l"].shape and torch.equal(reached, learned.vectors["clip_l"])
    assert whole == (reader not in obstacles(name, rows))


@pytest.mark.parametrize("parts", [{"layers": 0}, {"layers": 0, "lora": False}], ids=["with a LoRA", "a word alone"])
@pytest.mark.parametrize("name", ["dog", "my_lora", "lora"])
def test_a_bundle_is_never_half_read_as_a_lora(tmp_path, loaders, parts, name):
    """diffusers' `load_lora_weights` on the whole file says no; it used to load nothing where the name holds "lora"."""
    path = save_bundle(concept({"clip_l": WIDTH}, name=name, **parts), tmp_path)
    state, *_ = loaders.StableDiffusionLoraLoaderMixin.lora_state_dict(str(path))
    assert not all("lora" in key for key in state), "that is what its refusal looks at"


def test_diffusers_reads_both_encoders_of_sdxl(tmp_path, pipeline):
    """SDXL pipelines load each encoder from its own tensor of the file, as diffusers documents."""
    import copy

    learned = concept({"clip_l": WIDTH, "clip_g": WIDTH})
    vectors = load_concept(save_embedding(learned, tmp_path)).vectors
    for encoder in ("clip_l", "clip_g"):
        text_encoder, tokenizer = copy.deepcopy(pipeline.text_encoder), copy.deepcopy(pipeline.tokenizer)
        pipeline.load_textual_inversion(vectors[encoder], token="<dog>", text_encoder=text_encoder, tokenizer=tokenizer)
        table = text_encoder.get_input_embeddings().weight
        assert torch.equal(table[-2:].detach(), learned.vectors[encoder])


def test_the_lora_of_a_bundle_is_found_by_diffusers(tmp_path, loaders):
    """The kohya names convert to diffusers' own, and the embedding beside them disturbs nothing once taken out."""
    learned = concept({"clip_l": WIDTH}, layers=0)
    lora = dict(load_concept(save_bundle(learned, tmp_path)).lora)
    state, alphas = loaders.StableDiffusionLoraLoaderMixin.lora_state_dict(lora)
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2."
    for ours, theirs in (("lora_down", "lora.down"), ("lora_up", "lora.up")):
        matches = [value for key, value in learned.lora.items() if ours in key]
        found = [value for key, value in state.items() if key.startswith(name) and "to_k" in key and theirs in key]
        assert len(found) == len(matches) == 1
        assert torch.equal(found[0], matches[0])
    assert list(alphas.values()) == [4.0]
