#!/usr/bin/env bash
# Kohya's sd-scripts (checkout, commit 48d368fa): how gen_img.py and its XTI reader take a word's file.
#
# Behaviour: gen_img.py takes the first tensor of a file, whatever it is called, and names the word after the file, its
# further vectors name1, name2, ...; a name that is a piece of the vocabulary ends in an assertion. The XTI reader of
# train_textual_inversion_XTI.py takes 16 tensors in the file's order, which in a safetensors file is that of their names.
# The scripts are in no registry, so the checkout is given: bash kohya_words.sh FOLDER. Not the whole program runs: the
# lines of gen_img.py that read embeddings are taken out of its source by their first and last words, and run on a
# tokenizer and a text encoder of random weights; the XTI reader is its own function, taken out in the same way.
set -euo pipefail
checkout=$(cd "${1:?the folder of a checkout of kohya-ss/sd-scripts at 48d368fa}" && pwd)
[ "$(git -C "$checkout" rev-parse --short=8 HEAD)" = 48d368fa ] || { echo "another commit than 48d368fa"; exit 2; }
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv venv
install="venv/bin/pip install -q --disable-pip-version-check"
$install torch==2.13.0
$install --no-deps transformers==5.23.0 safetensors==0.8.0 tokenizers==0.23.3 huggingface-hub==2.4.0 numpy==2.4.6 \
    regex==2026.11.15 pyyaml==6.0.3 requests==2.34.2 tqdm==4.70.1 packaging==26.3 hf-xet==1.8.0 httpx==0.28.1 \
    anyio==4.16.0 httpcore==1.0.9 h11==0.16.0 idna==3.20 certifi==2026.10.18 typer==0.29.2 click==8.5.1 \
    charset-normalizer==3.5.2 urllib3==2.8.0 open-clip-torch==3.3.0 httpx2==2.16.2 httpcore2==2.16.2 \
    truststore==0.10.5 shellingham==1.5.4 rich==15.0.0
cat > run.py <<'PYTHON'
import gzip, importlib.util, logging, os, sys, textwrap, types
from pathlib import Path
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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

def between(file, first, last):
    text = (Path(sys.argv[1]) / file).read_text(encoding="utf-8")
    begin = text.rindex("\n", 0, text.index(first)) + 1
    return textwrap.dedent(text[begin : text.index(last, begin)])

READ = between("gen_img.py", "if args.textual_inversion_embeddings:", "    # promptを取得する")
XTI = between("train_textual_inversion_XTI.py", "def load_weights(file):", "def setup_parser")

def encoder(width):
    return CLIPTextModel(CLIPTextConfig(vocab_size=49408, bos_token_id=49406, eos_token_id=49407, hidden_size=width,
                                        intermediate_size=32, num_hidden_layers=1, num_attention_heads=2))

def holds(name, tensors, rows, sdxl=False):
    save_file(tensors, f"{name}.safetensors")
    words, encoders = [tokenizer(), tokenizer()], [encoder(32), encoder(64)]
    here = {"args": types.SimpleNamespace(textual_inversion_embeddings=[f"{name}.safetensors"]), "os": os, "torch": torch,
            "is_sdxl": sdxl, "tokenizers": words, "text_encoders": encoders, "logger": logging.getLogger("kohya"),
            "model_util": types.SimpleNamespace(is_safetensors=lambda path: True),
            "pipe": types.SimpleNamespace(add_token_replacement=lambda *given: None)}
    try:
        exec(READ, here)
    except AssertionError as error:
        return f"refused: {str(error).split(' / ')[0]}"
    names = [name] + [f"{name}{number}" for number in range(1, 3)]
    return all(torch.equal(model.get_input_embeddings().weight[words[0].convert_tokens_to_ids(names)].detach(), value)
               for model, value in zip(encoders, rows))

seen, three, others = {}, torch.randn(3, 32), torch.randn(3, 64)
def says(what, found):
    seen[what] = found
    print(f"{what}: {found}")
says("emb_params", holds("my-dog", {"emb_params": three}, [three]))
says("clip_l alone", holds("my-dog", {"clip_l": three}, [three]))
says("clip_l and clip_g", holds("my-dog", {"clip_l": three, "clip_g": others}, [three, others], True))
says("a piece of the vocabulary", holds("dog", {"emb_params": three}, [three]))
layers = ["IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT{number:02}" for number in range(3, 12))]
vectors = torch.randn(16, 3, 32)
save_file({key: rows.contiguous() for key, rows in zip(layers, vectors)}, "xti.safetensors")
here = {"os": os, "torch": torch}
exec(XTI, here)
says("XTI, layer after layer", torch.equal(here["load_weights"]("xti.safetensors"), vectors.flatten(0, 1)))
expected = {"emb_params": True, "clip_l alone": True, "clip_l and clip_g": True, "XTI, layer after layer": True,
            "a piece of the vocabulary": "refused: token ids1 is not ordered"}
if seen != expected:
    sys.exit(f"changed: {[what for what in expected if seen.get(what) != expected[what]]}")
PYTHON
venv/bin/python run.py "$checkout" 2>/dev/null
