#!/usr/bin/env bash
# InvokeAI 6.14.2: which embedding files its model manager knows, how a word is typed, and what it reads of a LoRA.
#
# Behaviour: one tensor is an embedding if it is called emb_params (or has one dimension); under any other name, clip_l
# too, the number of vectors is taken for their width and the file is refused. clip_l with clip_g is SDXL's. A prompt
# names a word as <name>, of the characters a-z A-Z 0-9 . , _ - and space; capitals are no matter. A LoRA's scales are
# read layer by layer, and full differences are read too.
# Its own modules run: the model manager's recognition of files, the loader, the patcher of tokenizer and text encoder,
# the LoRA loader. The text encoder is a small one of random weights. Stubs stand for packages that these paths do not
# use: printed at the end.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv venv
install="venv/bin/pip install -q --disable-pip-version-check"
$install torch==2.13.0
$install --no-deps invokeai==6.14.2 compel==2.5.1 transformers==5.5.4 tokenizers==0.22.2 huggingface-hub==1.33.0 \
    safetensors==0.8.0 numpy==1.26.4 pydantic==2.14.3 pydantic-core==2.50.4 annotated-types==0.8.0 \
    typing-inspection==0.4.5 packaging==26.3 regex==2026.11.15 pyyaml==6.0.3 requests==2.34.2 tqdm==4.70.1 \
    blake3==1.0.11 pydantic-settings python-dotenv httpx==0.28.1 certifi idna anyio==4.16.0 httpcore h11 \
    pyparsing==3.3.3 deprecated==1.3.1 wrapt==1.17.3 open-clip-torch==3.3.0 pillow==13.0.0 diffusers==0.40.0 \
    importlib-metadata==10.2.0 zipp==4.1.2 accelerate==1.15.0 charset-normalizer==3.5.2 urllib3==2.8.0
cat > run.py <<'PYTHON'
import gzip, importlib.abc, importlib.machinery, importlib.util, sys, types
from importlib.metadata import version
from pathlib import Path
from unittest.mock import MagicMock
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

class Anything(type):
    def __iter__(cls): return iter(())
    def __getitem__(cls, item): return cls
    def __getattr__(cls, name):
        if name.startswith("__"): raise AttributeError(name)
        return MagicMock(name=name)

class StubModule(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return Anything(name, (), {}) if name[0].isupper() else MagicMock(name=name)

class Stub(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    names, used = {"onnxruntime", "gguf", "picklescan", "einops", "torchvision", "cv2", "psutil", "spandrel",
                   "mediapipe", "onnx", "sentencepiece", "torchsde", "bitsandbytes", "mistral_common"}, set()
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        self.used.add(spec.name.split(".")[0])
        return StubModule(spec.name)
    def exec_module(self, module): pass
sys.meta_path.append(Stub())
# What finds a typed name's model in InvokeAI's database; only the reading of the prompt runs here.
for part in ("model_records", "shared.invocation_context"):
    sys.modules[f"invokeai.app.services.{part}"] = StubModule(part)

from compel.embeddings_provider import EmbeddingsProvider
from invokeai.app.util.ti_utils import extract_ti_triggers_from_prompt
from invokeai.backend.model_manager.configs.textual_inversion import (
    TI_File_SD1_Config, TI_File_SD2_Config, TI_File_SDXL_Config)
from invokeai.backend.model_manager.model_on_disk import ModelOnDisk
from invokeai.backend.model_patcher import ModelPatcher
from invokeai.backend.patches.lora_conversions.sd_lora_conversion_utils import lora_model_from_sd_state_dict
from invokeai.backend.textual_inversion import TextualInversionModelRaw

print("invokeai", version("invokeai"))
seen = {}
def says(what, found):
    seen[what] = found
    print(f"{what}: {found}")

def known(tensors):
    save_file(tensors, "word.safetensors")
    on_disk, last = ModelOnDisk(Path("word.safetensors")), "not recognised"
    for kind in (TI_File_SD1_Config, TI_File_SD2_Config, TI_File_SDXL_Config):
        if not kind._file_looks_like_embedding(on_disk): continue
        try:
            kind._validate_base(on_disk)
            return kind.model_fields["base"].default.value
        except Exception as error:
            last = str(error)
    return last

rows = torch.randn(3, 768)
says("emb_params", known({"emb_params": rows}))
says("clip_l alone", known({"clip_l": rows}))
says("<word>", known({"<word>": rows}))
says("<word> of one dimension", known({"<word>": rows[0].clone()}))
says("clip_l and clip_g", known({"clip_l": rows, "clip_g": torch.randn(3, 1280)}))
says("16 layers", known({f"IN{number:02}": rows.clone() for number in range(16)}))
says("typed", extract_ti_triggers_from_prompt("a <My-dog.v2>, a <a b>, a <犬>, a <a+b>, a plain-word"))

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

def used(name, tensors, width):
    """The rows that the text encoder has where a prompt holds <name>, through its own patcher and compel's reader."""
    shape = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=49408, bos_token_id=49406, eos_token_id=49407, **shape))
    save_file(tensors, "word.safetensors")
    word = TextualInversionModelRaw.from_checkpoint("word.safetensors")
    with ModelPatcher.apply_ti(tokenizer(), encoder, [(name, word)]) as (tokens, manager):
        provider = EmbeddingsProvider(tokens, encoder, textual_inversion_manager=manager)
        ids, *_ = provider.get_token_ids([f"a <{name}> on grass"], include_start_and_end_markers=True)
        return encoder.get_input_embeddings().weight[[one for one in ids if one >= 49408]].detach()

for name in ("my-dog", "My-Dog"):
    says(f"<{name}> gives its 3 rows", torch.equal(used(name, {"emb_params": rows}, 768), rows))
two = {"clip_l": rows, "clip_g": torch.randn(3, 1280)}
says("SDXL's two", all(torch.equal(used("my-dog", two, len(value[0])), value) for value in two.values()))

down, up, change = torch.randn(2, 8), torch.randn(6, 2), torch.randn(6, 8)
low = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
state = {f"lora_unet_a.{key}": value for key, value in low.items()} | {"lora_unet_b.diff": change}
layers = lora_model_from_sd_state_dict(state).layers
a, b = (layers[name] for name in ("lora_unet_a", "lora_unet_b"))
original = torch.zeros(6, 8)
says("a layer's own scale", torch.allclose(a.get_parameters({"weight": original}, 1.0)["weight"], 0.5 * up @ down))
says("a full difference", torch.allclose(b.get_parameters({"weight": original}, 1.0)["weight"], change))
print("stubs:", *sorted(Stub.used))
expected = {
    "emb_params": "sd-1", "clip_l alone": "unrecognized token dimension 3", "<word>": "unrecognized token dimension 3",
    "<word> of one dimension": "sd-1", "clip_l and clip_g": "sdxl", "16 layers": "not recognised",
    "typed": ["<My-dog.v2>", "<a b>"], "<my-dog> gives its 3 rows": True, "<My-Dog> gives its 3 rows": True,
    "SDXL's two": True, "a layer's own scale": True, "a full difference": True,
}
if seen != expected:
    sys.exit(f"changed: {[what for what in expected if seen.get(what) != expected[what]]}")
PYTHON
venv/bin/python run.py
