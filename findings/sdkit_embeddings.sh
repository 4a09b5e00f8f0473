#!/usr/bin/env bash
# sdkit 2.1.1 (Easy Diffusion): which embedding files it knows, what a word is called, and which it skips.
#
# Behaviour: emb_params, and clip_l with clip_g, are known; clip_l alone is an "Unknown embedding model type". A word is
# called after its file, in lower case, up to the first full stop; where that is a piece of CLIP's vocabulary the file is
# skipped without a word. Its further vectors are name_1, name_2, ..., so a file called name_1 is one of them.
# Its own module for embeddings runs, on a tokenizer and small text encoders of random weights in place of a pipeline,
# with current transformers and without the packages that sdkit uses elsewhere (stubs, printed at the end).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv venv
install="venv/bin/pip install -q --disable-pip-version-check"
$install torch==2.13.0
$install --no-deps sdkit==2.1.1 safetensors==0.8.0 numpy==2.4.6 requests==2.34.2 transformers==5.23.0 \
    tokenizers==0.23.3 huggingface-hub==2.4.0 regex==2026.11.15 pyyaml==6.0.3 tqdm==4.70.1 packaging==26.3 \
    pillow==13.0.0 open-clip-torch==3.3.0 httpx==0.28.1 anyio==4.16.0 httpcore==1.0.9 h11==0.16.0 idna==3.20 \
    certifi==2026.10.18 charset-normalizer==3.5.2 urllib3==2.8.0 hf-xet==1.8.0 typer==0.29.2 click==8.5.1 \
    shellingham==1.5.4 rich==15.0.0 httpx2==2.16.2 httpcore2==2.16.2 truststore==0.10.5
cat > run.py <<'PYTHON'
import gzip, importlib.abc, importlib.machinery, importlib.util, os, sys, types
from importlib.metadata import version
from pathlib import Path
from unittest.mock import MagicMock
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

class Stub(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    names = {"picklescan", "torchruntime", "piexif", "psutil", "diffusers", "accelerate", "ldm", "compel"}
    names |= {"einops", "k_diffusion", "gfpgan", "realesrgan", "omegaconf", "cv2", "torchvision", "controlnet_aux"}
    used = set()
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        self.used.add(spec.name.split(".")[0])
        module = MagicMock(name=spec.name)
        module.__spec__, module.__path__ = spec, []
        return module
    def exec_module(self, module): pass
sys.meta_path.append(Stub())
from sdkit import Context
from sdkit.models.model_loader import embeddings

print("sdkit", version("sdkit"))

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

def encoder(width):
    shape = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=49408, bos_token_id=49406, eos_token_id=49407, **shape))

def load(files, kind="SD1"):
    """The pipeline after sdkit has loaded these files; or what it said."""
    pipe = types.SimpleNamespace(tokenizer=tokenizer(), text_encoder=encoder(768))
    if kind == "SDXL": pipe.tokenizer_2, pipe.text_encoder_2 = tokenizer(), encoder(1280)
    context, paths = Context(), []
    for name, tensors in files.items():
        paths.append(os.path.abspath(f"{name}.safetensors")); save_file(tensors, paths[-1])
    context.models["stable-diffusion"] = {"default": pipe, "type": kind}
    context.model_paths["embeddings"] = paths
    try:
        embeddings.load_model(context)
    except RuntimeError as error:
        return str(error).rpartition("safetensors. ")[2]
    return pipe

def row(pipe, token, second=False):
    words, model = (pipe.tokenizer_2, pipe.text_encoder_2) if second else (pipe.tokenizer, pipe.text_encoder)
    return model.get_input_embeddings().weight[words.convert_tokens_to_ids(token)].detach()

def holds(pipe, name, rows, second=False):
    names = [name] + [f"{name}_{number}" for number in range(1, len(rows))]
    return all(torch.equal(row(pipe, one, second), value) for one, value in zip(names, rows))

seen = {}
def says(what, found):
    seen[what] = found
    print(f"{what}: {found}")

rows, others = torch.randn(3, 768), torch.randn(3, 1280)
says("emb_params", holds(load({"my-dog": {"emb_params": rows}}), "my-dog", rows))
says("clip_l alone", load({"my-dog": {"clip_l": rows}}))
says("<word>", load({"my-dog": {"<word>": rows}}))
both = load({"my-dog": {"clip_l": rows, "clip_g": others}}, "SDXL")
says("clip_l and clip_g", holds(both, "my-dog", rows) and holds(both, "my-dog", others, True))
says("My-Dog.v2 is called my-dog", holds(load({"My-Dog.v2": {"emb_params": rows}}), "my-dog", rows))
for name in ("dog", "flat"):
    says(f"{name} is skipped", len(load({name: {"emb_params": rows}}).tokenizer) == 49408)
two = load({"gizmo9": {"emb_params": rows}, "gizmo9_1": {"emb_params": rows[:1] + 1}})
says("beside gizmo9, gizmo9_1 takes its second row", torch.equal(row(two, "gizmo9_1"), rows[0] + 1))
print("stubs:", *sorted(Stub.used))
expected = {
    "emb_params": True, "clip_l alone": "Unknown embedding model type!", "<word>": "Unknown embedding model type!",
    "clip_l and clip_g": True, "My-Dog.v2 is called my-dog": True, "dog is skipped": True, "flat is skipped": True,
    "beside gizmo9, gizmo9_1 takes its second row": True,
}
if seen != expected:
    sys.exit(f"changed: {[what for what in expected if seen.get(what) != expected[what]]}")
PYTHON
venv/bin/python run.py
