"""Our embedding files in stock diffusers: the pipeline's text encoder gives what our vectors give in memory."""

import pytest
import torch

from contextual_inversion.core.files import load_concept, save_bundle, save_embedding
from contextual_inversion.core.models.tiny.tokenizer import tiny_tokenizer

from .conftest import concept

WIDTH = 32


@pytest.fixture(scope="module")
def loaders():
    return pytest.importorskip("diffusers.loaders")


@pytest.fixture
def pipeline(loaders):
    """What a Stable Diffusion pipeline is to the textual inversion loader: a tokenizer and a small random encoder."""
    import copy

    from diffusers import DiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    class TextPipeline(DiffusionPipeline, loaders.TextualInversionLoaderMixin):
        def __init__(self, tokenizer, text_encoder):
            super().__init__()
            self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=49408, eos_token_id=49407, bos_token_id=49406, **shape))
    return TextPipeline(copy.deepcopy(tiny_tokenizer()), encoder.eval())


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
