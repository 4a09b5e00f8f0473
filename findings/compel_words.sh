#!/usr/bin/env bash
# compel 2.5.1 on diffusers 0.42.1: which names of a word it passes on to the text encoder.
#
# Behaviour: of <My-Dog> with 3 vectors the first alone arrives; <naïve-dog> is lost, since prompts are decoded and encoded
# again; <a--b> is lost, since two signs in a row are a weight; <my-dog> and <a+b> arrive whole.
# The whole library runs, on a tokenizer and a text encoder of random weights.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv venv
install="venv/bin/pip install -q --disable-pip-version-check"
$install torch==2.13.0
$install --no-deps compel==2.5.1 pyparsing==3.3.3 diffusers==0.42.1 transformers==5.23.0 safetensors==0.8.0 \
    tokenizers==0.23.3 huggingface-hub==2.4.0 numpy==2.4.6 regex==2026.11.15 pyyaml==6.0.3 requests==2.34.2 \
    tqdm==4.70.1 packaging==26.3 pillow==13.0.0 importlib-metadata==10.2.0 zipp==4.1.2 hf-xet==1.8.0 httpx==0.28.1 \
    anyio==4.16.0 httpcore==1.0.9 h11==0.16.0 idna==3.20 certifi==2026.10.18 typer==0.29.2 click==8.5.1 \
    charset-normalizer==3.5.2 urllib3==2.8.0 open-clip-torch==3.3.0 httpx2==2.16.2 httpcore2==2.16.2 \
    truststore==0.10.5 shellingham==1.5.4 rich==15.0.0
cat > run.py <<'PYTHON'
import gzip, importlib.util, sys
from importlib.metadata import version
from pathlib import Path
import torch
from compel import Compel, DiffusersTextualInversionManager
from diffusers import DiffusionPipeline
from diffusers.loaders import TextualInversionLoaderMixin
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

print("compel", version("compel"))

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

class Pipeline(DiffusionPipeline, TextualInversionLoaderMixin):
    def __init__(self, tokenizer, text_encoder):
        super().__init__()
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder)

def arrived(name):
    """How many of a word's 3 vectors the text encoder is given."""
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=49408, bos_token_id=49406, eos_token_id=49407, hidden_size=32,
                                           intermediate_size=32, num_hidden_layers=1, num_attention_heads=2))
    pipe, seen = Pipeline(tokenizer(), encoder), []
    pipe.load_textual_inversion({"emb_params": torch.randn(3, 32)}, token=f"<{name}>")
    encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("input_ids", args[0] if args else None)), with_kwargs=True)
    reader = Compel(pipe.tokenizer, encoder, textual_inversion_manager=DiffusersTextualInversionManager(pipe))
    reader(f"a photo of a <{name}> on grass")
    return int((seen[0] >= 49408).sum())

expected = {"my-dog": 3, "a+b": 3, "My-Dog": 1, "naïve-dog": 0, "a--b": 0}
found = {name: arrived(name) for name in expected}
for name, count in found.items():
    print(f"<{name}>: {count} of 3 vectors")
if found != expected:
    sys.exit(f"changed: {[name for name in expected if found[name] != expected[name]]}")
PYTHON
venv/bin/python run.py 2>/dev/null
