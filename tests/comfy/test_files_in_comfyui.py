"""Stock ComfyUI reads our files: `embedding:name` finds the vectors, the LoRA loader finds the LoRA."""

import pytest
import torch

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files import save_bundle, save_embedding

FAMILIES = {
    "SD 1.x": {"clip_l": 768},
    "SD 2.x": {"clip_h": 1024},
    "SDXL": {"clip_l": 768, "clip_g": 1280},
    "bundled": {"clip_l": 128},
}
LAYER = "lora_unet_mid_block_attentions_0_proj_in"


def concept(family: str, rows: int = 2) -> Concept:
    generator = torch.Generator().manual_seed(1)
    widths = FAMILIES[family]
    vectors = {encoder: torch.randn(rows, width, generator=generator) for encoder, width in widths.items()}
    layers = {encoder: torch.randn(3, rows, width, generator=generator) for encoder, width in widths.items()}
    lora = {
        f"{LAYER}.lora_down.weight": torch.randn(4, 8, generator=generator),
        f"{LAYER}.lora_up.weight": torch.randn(8, 4, generator=generator),
        f"{LAYER}.alpha": torch.tensor(2.0),
    }
    return Concept("dog.v2", "dog", vectors, layer_vectors=layers, lora=lora, provenance={"steps": 3})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("save", [save_embedding, save_bundle])
@pytest.mark.parametrize("name", ["dog.v2", "mine/dog_2", "犬"])
def test_comfyui_loads_the_same_vectors(comfyui, tmp_path, family, save, name):
    import comfy.sd1_clip

    learned = concept(family)
    save(learned, tmp_path, name)
    for encoder, value in learned.vectors.items():
        found = comfy.sd1_clip.load_embed(name, str(tmp_path), value.shape[1], encoder)
        assert torch.equal(found, value)


@pytest.mark.parametrize("family", ["SD 1.x", "SD 2.x", "bundled"])
def test_comfyui_loads_the_emb_params_twin(comfyui, tmp_path, family):
    import comfy.sd1_clip

    learned = concept(family)
    save_embedding(learned, tmp_path, layout="emb_params")
    ((encoder, value),) = learned.vectors.items()
    assert torch.equal(comfy.sd1_clip.load_embed("dog.v2", [str(tmp_path)], value.shape[1], encoder), value)


@pytest.fixture(scope="module")
def tokenizer(comfyui):
    """ComfyUI's own CLIP-L tokenizer."""
    from comfy.sd1_clip import SDTokenizer

    return SDTokenizer()


PROMPTS = ["embedding:{}", "a photo of embedding:{} on grass", "a embedding:{}, red", "(a embedding:{}:1.2)"]


@pytest.mark.parametrize("name", ["dog", "dog.v2", "a+b", "my-dog_2", "犬", "हिन्दी", "mine/dog"])
def test_every_safe_name_works_in_a_prompt(tokenizer, tmp_path, name, monkeypatch):
    """The tokenizer replaces the word by the concept's vectors and leaves none of the name behind as text."""
    learned = concept("SD 1.x")
    save_embedding(learned, tmp_path, name)
    monkeypatch.setattr(tokenizer, "embedding_directory", str(tmp_path))
    for prompt in PROMPTS:
        tokens = [token for token, *_ in tokenizer.tokenize_with_weights(prompt.format(name))[0]]
        vectors = [token for token in tokens if isinstance(token, torch.Tensor)]
        assert torch.equal(torch.stack(vectors), learned.vectors["clip_l"])
        without = prompt.replace("embedding:{}", "").replace(":1.2", "")
        plain = [token for token, *_ in tokenizer.tokenize_with_weights(without)[0] if token < 49406]
        assert [token for token in tokens if not isinstance(token, torch.Tensor) and token < 49406] == plain


def test_comfyui_patches_the_lora_of_a_bundle(comfyui, tmp_path):
    import comfy.lora
    import comfy.utils

    learned = concept("SDXL")
    loaded = comfy.utils.load_torch_file(str(save_bundle(learned, tmp_path)), safe_load=True)
    patches = comfy.lora.load_lora(loaded, {LAYER: "model.weight"})
    assert list(patches) == ["model.weight"]
    up, down, alpha = patches["model.weight"].weights[:3]
    assert torch.equal(up, learned.lora[f"{LAYER}.lora_up.weight"])
    assert torch.equal(down, learned.lora[f"{LAYER}.lora_down.weight"])
    assert alpha == 2.0
