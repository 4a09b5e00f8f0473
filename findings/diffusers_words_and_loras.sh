#!/usr/bin/env bash
# diffusers 0.42.1 (peft 0.21.2, transformers 5.23.0): what becomes of words with capitals, and of LoRAs in kohya's names.
#
# Behaviour: of a word <My-Dog> of 3 vectors a prompt uses the first alone, without a warning; one of a single vector
# works, and so does <my-dog>. A bare "dog9" beside a bare "dog9_1" takes it for its second vector.
# All layers of a LoRA's UNet are scaled by the alpha of one of them, and so are all of its text encoder, whatever their
# own alphas are. A text encoder's q_proj alone is refused, and so is ".diff"; dora_scale is left out with a warning.
# A file of keys that all hold "lora" and name no layer loads nothing, with a warning.
# The whole library runs, on a UNet and a text encoder of random weights.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv venv
install="venv/bin/pip install -q --disable-pip-version-check"
$install torch==2.13.0
$install --no-deps diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 \
    tokenizers==0.23.3 huggingface-hub==2.4.0 numpy==2.4.6 regex==2026.11.15 pyyaml==6.0.3 requests==2.34.2 \
    tqdm==4.70.1 packaging==26.3 pillow==13.0.0 importlib-metadata==10.2.0 zipp==4.1.2 psutil==7.2.2 hf-xet==1.8.0 \
    httpx==0.28.1 anyio==4.16.0 httpcore==1.0.9 h11==0.16.0 idna==3.20 certifi==2026.10.18 typer==0.29.2 \
    click==8.5.1 charset-normalizer==3.5.2 urllib3==2.8.0 open-clip-torch==3.3.0 httpx2==2.16.2 httpcore2==2.16.2 \
    truststore==0.10.5 shellingham==1.5.4 rich==15.0.0
cat > run.py <<'PYTHON'
import gzip, importlib.util, sys
from importlib.metadata import version
from pathlib import Path
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from peft.tuners.lora import LoraLayer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

print("diffusers", version("diffusers"))
seen = {}
def says(what, found):
    seen[what] = found
    print(f"{what}: {found}")

def tokenizer():
    lines = gzip.open(Path(importlib.util.find_spec("open_clip").origin).parent / "bpe_simple_vocab_16e6.txt.gz", "rt",
                      encoding="utf-8").read().split("\n")[1:48895]
    merges = [tuple(line.split()) for line in lines]
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    single = [chr(code) for code in codes] + [chr(256 + number) for number in range(256 - len(codes))]
    tokens = [*single, *(one + "</w>" for one in single), *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, bos_token="<|startoftext|>", pad_token="<|endoftext|>",
                         eos_token="<|endoftext|>", unk_token="<|endoftext|>", model_max_length=77)

class Pipeline(DiffusionPipeline, TextualInversionLoaderMixin, StableDiffusionLoraLoaderMixin):
    def __init__(self, tokenizer, text_encoder, unet):
        super().__init__()
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet)

def pipeline():
    text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, bos_token_id=49406, eos_token_id=49407, hidden_size=32,
                                        intermediate_size=32, num_hidden_layers=2, num_attention_heads=2))
    unet = UNet2DConditionModel(block_out_channels=(32,), layers_per_block=2, cross_attention_dim=32, norm_num_groups=8,
                                down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",))
    return Pipeline(tokenizer(), text, unet)

def rows_used(words, prompt):
    pipe = pipeline()
    for token, rows in words.items():
        pipe.load_textual_inversion({"emb_params": rows}, token=token)
    ids = pipe.tokenizer(pipe.maybe_convert_prompt(prompt, pipe.tokenizer)).input_ids
    return pipe.text_encoder.get_input_embeddings().weight[[one for one in ids if one >= 49408]].detach()

three = torch.randn(3, 32)
for token in ("<my-dog>", "<My-Dog>"):
    says(f"{token}, rows used of 3", len(rows_used({token: three}, f"a {token} on grass")))
says("<My-Dog>, rows used of 1", len(rows_used({"<My-Dog>": three[:1]}, "a <My-Dog> on grass")))
says("dog9 beside dog9_1, rows used of 1", len(rows_used({"dog9": three[:1], "dog9_1": three[1:2]}, "a dog9 on grass")))

def low(stem, outputs, inputs, alpha):
    return {f"{stem}.lora_down.weight": torch.randn(2, inputs), f"{stem}.lora_up.weight": torch.randn(outputs, 2),
            f"{stem}.alpha": torch.tensor(float(alpha))}

def scales(lora):
    pipe = pipeline()
    try:
        pipe.load_lora_weights(dict(lora))
    except ValueError as error:
        return f"refused: {str(error).strip().splitlines()[0].strip()}"
    layers = [layer for part in (pipe.unet, pipe.text_encoder) for layer in part.modules() if isinstance(layer, LoraLayer)]
    return sorted(float(next(iter(layer.scaling.values()))) for layer in layers)

UNET, TEXT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_", "lora_te_text_model_encoder_layers_0_self_attn_"
parts = ("q_proj", "k_proj", "v_proj", "out_proj")
says("UNet, alphas 2 and 8 of rank 2", scales({**low(UNET + "to_k", 32, 32, 2), **low(UNET + "to_v", 32, 32, 8)}))
says("text encoder, alphas 2, 4, 6, 8 of rank 2",
     scales({key: value for number, part in enumerate(parts, 1) for key, value in low(TEXT + part, 32, 32, 2 * number).items()}))
says("q_proj alone", scales(low(TEXT + "q_proj", 32, 32, 2)))
says("a full difference", scales({UNET + "to_k.diff": torch.randn(32, 32)}))
says("with dora_scale", scales({**low(UNET + "to_k", 32, 32, 2), UNET + "to_k.dora_scale": torch.ones(1, 32)}))
says("keys that hold lora and name no layer", scales({"bundle_emb.mylora.clip_l": three}))
expected = {
    "<my-dog>, rows used of 3": 3, "<My-Dog>, rows used of 3": 1, "<My-Dog>, rows used of 1": 1,
    "dog9 beside dog9_1, rows used of 1": 2, "q_proj alone": "refused: Could not automatically infer state dict type",
    "a full difference": "refused: The following keys have not been correctly renamed:", "with dora_scale": [1.0],
    "keys that hold lora and name no layer": [],
}
wrong = [what for what in expected if seen[what] != expected[what]]
wrong += [what for what in seen if "alphas" in what and len(set(seen[what])) != 1]
if wrong:
    sys.exit(f"changed: {wrong}")
PYTHON
venv/bin/python run.py 2>/dev/null
