#!/usr/bin/env bash
# stable-diffusion.cpp (stable-diffusion-cpp-python 0.4.7): which embedding files it reads, and where it sees a name.
#
# Behaviour: a file's tensors are taken whatever they are called, and the picture is that of the same rows in the
# vocabulary; a name is matched in lower case and anywhere, inside other words too: "concatenate" holds the word "cat".
# Rows in float16 are not read as what they are: the picture is another one, without a word about it.
# The whole library runs, on a Stable Diffusion 1.5 of random weights (4 GB of memory, 2 GB of disk for a while).
# Needs a C++ compiler and cmake; the first installation compiles for about a quarter of an hour.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check --no-deps stable-diffusion-cpp-python==0.4.7 numpy==2.4.6 \
    pillow==13.0.0 typing_extensions==4.16.0
cat > run.py <<'PYTHON'
import json, os, re, struct, sys
from importlib.metadata import version
import numpy as np

PATTERN = (np.random.default_rng(0).standard_normal(1 << 22) * 0.02).astype(np.float16)

def write(path, tensors):
    """A safetensors file; an array, or a shape to be filled with small random numbers, or ones for a norm."""
    header, at = {}, 0
    for name, value in tensors.items():
        shape = value.shape if isinstance(value, np.ndarray) else value
        kind = value.dtype if isinstance(value, np.ndarray) else np.dtype(np.float16)
        size = kind.itemsize * int(np.prod(shape))
        header[name] = {"dtype": {2: "F16", 4: "F32"}[kind.itemsize], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, (name, value) in enumerate(tensors.items()):
            if not isinstance(value, np.ndarray):
                count = int(np.prod(value))
                # Several times larger than trained weights on the way of the prompt, so that it shows in the picture.
                part = np.resize(np.roll(PATTERN, 977 * number), count)
                value = np.ones(count, np.float16) if NORM.search(name) else part * np.float16(4 if "attn2" in name else 1)
            file.write(value.tobytes())

NORM = re.compile(r"(norm\d?|norm_out|in_layers\.0|out_layers\.0|diffusion_model\.out\.0|layer_norm\d?)\.weight$")

def affine(name, *shape):
    return {name + ".weight": shape, name + ".bias": shape[:1]}

def unet():
    root, made = "model.diffusion_model.", {}
    def add(parts): made.update({root + name: shape for name, shape in parts.items()})
    def resnet(name, a, b):
        add({**affine(name + ".in_layers.0", a), **affine(name + ".in_layers.2", b, a, 3, 3)})
        add({**affine(name + ".emb_layers.1", b, 1280), **affine(name + ".out_layers.0", b)})
        add(affine(name + ".out_layers.3", b, b, 3, 3))
        if a != b: add(affine(name + ".skip_connection", b, a, 1, 1))
    def attention(name, c):
        add({**affine(name + ".norm", c), **affine(name + ".proj_in", c, c, 1, 1), **affine(name + ".proj_out", c, c, 1, 1)})
        block = name + ".transformer_blocks.0."
        for number, context in ((1, c), (2, 768)):
            add({f"{block}attn{number}.to_q.weight": (c, c), **affine(f"{block}attn{number}.to_out.0", c, c)})
            add({f"{block}attn{number}.to_{part}.weight": (c, context) for part in "kv"})
        add({**affine(block + "ff.net.0.proj", 8 * c, c), **affine(block + "ff.net.2", c, 4 * c)})
        for number in (1, 2, 3): add(affine(f"{block}norm{number}", c))
    add({**affine("time_embed.0", 1280, 320), **affine("time_embed.2", 1280, 1280)})
    add({**affine("input_blocks.0.0", 320, 4, 3, 3), **affine("out.0", 320), **affine("out.2", 4, 320, 3, 3)})
    widths, seen, number, c = (320, 640, 1280, 1280), [320], 1, 320
    for level, width in enumerate(widths):
        for _ in range(2):
            resnet(f"input_blocks.{number}.0", c, width); c = width
            if level < 3: attention(f"input_blocks.{number}.1", c)
            seen.append(c); number += 1
        if level < 3:
            add(affine(f"input_blocks.{number}.0.op", c, c, 3, 3)); seen.append(c); number += 1
    resnet("middle_block.0", c, c); attention("middle_block.1", c); resnet("middle_block.2", c, c)
    number = 0
    for level in (3, 2, 1, 0):
        for turn in range(3):
            resnet(f"output_blocks.{number}.0", c + seen.pop(), widths[level]); c = widths[level]
            if level < 3: attention(f"output_blocks.{number}.1", c)
            if turn == 2 and level: add(affine(f"output_blocks.{number}.{1 if level == 3 else 2}.conv", c, c, 3, 3))
            number += 1
    return made

def vae():
    made = {}
    def resnet(name, a, b):
        made.update({**affine(name + ".norm1", a), **affine(name + ".conv1", b, a, 3, 3)})
        made.update({**affine(name + ".norm2", b), **affine(name + ".conv2", b, b, 3, 3)})
        if a != b: made.update(affine(name + ".nin_shortcut", b, a, 1, 1))
    def middle(name):
        for number in (1, 2): resnet(f"{name}.mid.block_{number}", 512, 512)
        made.update(affine(name + ".mid.attn_1.norm", 512))
        for part in ("q", "k", "v", "proj_out"): made.update(affine(f"{name}.mid.attn_1.{part}", 512, 512, 1, 1))
    root, widths = "first_stage_model.", (128, 256, 512, 512)
    made.update({**affine(root + "encoder.conv_in", 128, 3, 3, 3), **affine(root + "decoder.conv_in", 512, 4, 3, 3)})
    c = 128
    for level, width in enumerate(widths):
        for number in range(2): resnet(f"{root}encoder.down.{level}.block.{number}", c, width); c = width
        if level < 3: made.update(affine(f"{root}encoder.down.{level}.downsample.conv", c, c, 3, 3))
    middle(root + "encoder"); middle(root + "decoder")
    for level in (3, 2, 1, 0):
        for number in range(3): resnet(f"{root}decoder.up.{level}.block.{number}", c, widths[level]); c = widths[level]
        if level: made.update(affine(f"{root}decoder.up.{level}.upsample.conv", c, c, 3, 3))
    made.update({**affine(root + "encoder.norm_out", 512), **affine(root + "encoder.conv_out", 8, 512, 3, 3)})
    made.update({**affine(root + "decoder.norm_out", 128), **affine(root + "decoder.conv_out", 3, 128, 3, 3)})
    made.update({**affine(root + "quant_conv", 8, 8, 1, 1), **affine(root + "post_quant_conv", 4, 4, 1, 1)})
    return made

def clip(table):
    root = "cond_stage_model.transformer.text_model."
    made = {root + "embeddings.token_embedding.weight": table, root + "embeddings.position_embedding.weight": (77, 768)}
    for number in range(12):
        layer = f"{root}encoder.layers.{number}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"): made.update(affine(f"{layer}self_attn.{part}", 768, 768))
        made.update({**affine(layer + "mlp.fc1", 3072, 768), **affine(layer + "mlp.fc2", 768, 3072)})
        for part in (1, 2): made.update(affine(f"{layer}layer_norm{part}", 768))
    return {**made, **affine(root + "final_layer_norm", 768)}

table = np.resize(PATTERN, 49408 * 768).reshape(49408, 768)
write("model.safetensors", {**clip(table), **unet(), **vae()})
CAT, DOG = 2368, 1929  # CLIP's ids of "cat" and "dog" at the end of a word
rows = table[[CAT, DOG]].astype(np.float32)
write("emb-params.safetensors", {"emb_params": rows})
write("clip-l.safetensors", {"clip_l": rows})
write("My-Word.safetensors", {"emb_params": rows})
write("half-word.safetensors", {"emb_params": rows.astype(np.float16)})
write("cat.safetensors", {"emb_params": rows[[1, 1, 1]]})

from stable_diffusion_cpp import StableDiffusion, stable_diffusion_cpp as sd_cpp
FREE = ("emb-params", "clip-l", "My-Word")
print("stable-diffusion-cpp-python", version("stable-diffusion-cpp-python"))

def picture(prompt, *names):
    # An instance for every set of words: a word is one for good where it is loaded.
    if names not in loaded:
        loaded.clear()
        paths = [os.path.abspath(f"{name}.safetensors") for name in names]
        # The binding fills a local list and then reads this attribute, which it never sets: its embeddings work only so.
        StableDiffusion._embedding_items = [
            sd_cpp.sd_embedding_t(name=name.encode(), path=path.encode()) for name, path in zip(names, paths)
        ]
        loaded[names] = StableDiffusion(model_path="model.safetensors", embedding_paths=paths, verbose=False)
    (made,) = loaded[names].generate_image(prompt=prompt, width=64, height=64, sample_steps=1, cfg_scale=1.0, seed=1)
    return np.asarray(made)

loaded, same = {}, lambda a, b: bool(np.array_equal(a, b))
plain, word = picture("a cat dog .", *FREE), picture("a emb-params .", *FREE)
pairs = {
    "the rows are those of the vocabulary": (word, plain, True),
    "the tensor's name does not matter": (picture("a clip-l .", *FREE), plain, True),
    "another prompt is another picture": (picture("a dog dog .", *FREE), plain, False),
    "a name with capitals is typed": (picture("a My-Word .", *FREE), plain, True),
    "a name inside another word is left alone": (picture("a concatenate .", "cat"), picture("a concatenate .", *FREE), False),
    "rows in float16 are read": (picture("a half-word .", "half-word"), plain, False),
}
wrong = []
for what, (a, b, expected) in pairs.items():
    print(f"{what}: {same(a, b)}")
    if same(a, b) != expected: wrong.append(what)
if wrong: sys.exit(f"changed: {wrong}")
PYTHON
venv/bin/python run.py
