"""The programs that read what is saved here: which of their folders, what is typed, and which files each can read.

docs/interop.md says from which runs this is, and of which versions; AUTOMATIC1111's web UI was not run (no registry).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ProgramKey = Literal["comfyui", "a1111", "invokeai", "sdkit", "diffusers", "kohya", "stable-diffusion-cpp"]
FileLayout = Literal["emb_params", "one encoder", "one token", "clip_l and clip_g", "several", "XTI", "bundle", "LoRA"]


@dataclass(frozen=True)
class Program:
    """How a program is told of a word, and of the change of the model that goes with it.

    `word` is what a prompt holds. `use` and `use_lora` are what is done with a file, lines with {file} and {name}. What
    differs for a word with two text encoders is in `use_two`.
    """

    title: str
    word: str
    use: Sequence[str]
    use_lora: Sequence[str]
    use_two: Sequence[str] = ()
    lora_word: str = ""
    own_form: bool = False
    """Whether it applies every kind of change that this pack learns; others get `portable_lora`."""
    float16: bool = True
    """Whether it reads a word in float16."""


PROGRAMS: Mapping[ProgramKey, Program] = {
    "comfyui": Program(
        "ComfyUI",
        "embedding:{name}",
        ["put {file} into models/embeddings"],
        ["put {file} into models/loras and add a Load LoRA node"],
        own_form=True,
    ),
    "a1111": Program(
        "AUTOMATIC1111's web UI",
        "{name}",
        ["put {file} into embeddings"],
        ["put {file} into models/Lora"],
        lora_word="<lora:{lora}:1>",
    ),
    "invokeai": Program(
        "InvokeAI",
        "<{name}>",
        ["add {file} in the model manager"],
        ["add {file} in the model manager and choose it among the LoRAs"],
    ),
    "sdkit": Program(
        "sdkit, Easy Diffusion",
        "{name}",
        ["put {file} into models/embeddings"],
        ["put {file} into models/lora and choose it"],
    ),
    "diffusers": Program(
        "diffusers",
        "<{name}>",
        ['pipe.load_textual_inversion("{file}", token="<{name}>")'],
        ['pipe.load_lora_weights("{file}")'],
        [
            "from safetensors.torch import load_file",
            'word = load_file("{file}")',
            'pipe.load_textual_inversion(word["clip_l"], token="<{name}>", '
            "text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)",
            'pipe.load_textual_inversion(word["clip_g"], token="<{name}>", '
            "text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)",
        ],
    ),
    "kohya": Program(
        "Kohya's sd-scripts",
        "{name}",
        ["gen_img.py --textual_inversion_embeddings {file}"],
        ["gen_img.py --network_module networks.lora --network_weights {file}"],
    ),
    "stable-diffusion-cpp": Program(
        "stable-diffusion.cpp",
        "{name}",
        ["put {file} into the folder of --embd-dir"],
        ["put {file} into the folder of --lora-model-dir"],
        lora_word="<lora:{lora}:1>",
        float16=False,
    ),
}

ONE_LAYER = "it takes one layer's vectors for the word, in silence"
NO_WORD = "it finds no word in a bundle"
MISREAD = "it takes numbers in float16 for others, in silence: write float32"
UNREAD: Mapping[FileLayout, Mapping[ProgramKey, str]] = {
    "emb_params": {},
    "one encoder": {
        "invokeai": "it takes the number of vectors for their width, and refuses the file",
        "sdkit": "unknown embedding model type",
    },
    "one token": {
        "invokeai": "it takes the number of vectors for their width, and refuses the file",
        "sdkit": "unknown embedding model type",
    },
    "clip_l and clip_g": {},
    "several": {
        "invokeai": "it reads the first tensor alone",
        "sdkit": "unknown embedding model type",
        "diffusers": "it refuses a file of several tensors",
        "kohya": "it reads the first tensor alone",
    },
    "XTI": {
        "comfyui": ONE_LAYER,
        "a1111": ONE_LAYER,
        "invokeai": "it takes the number of vectors for their width, and refuses the file",
        "sdkit": "unknown embedding model type",
        "diffusers": "it refuses a file of several tensors",
        "stable-diffusion-cpp": "it takes the last tensor that it reads for the word",
    },
    "bundle": {
        "invokeai": NO_WORD,
        "sdkit": NO_WORD,
        "diffusers": "it refuses a bundle",
        "kohya": NO_WORD,
        "stable-diffusion-cpp": NO_WORD,
    },
    "LoRA": {},
}
"""Layout of a file -> programs that cannot use it, and why. What is not here is read."""


def file_layout(contents: Mapping[str, Any]) -> FileLayout:
    """The layout of a file that `describe` has described."""
    if contents["kind"] != "embedding":
        return contents["kind"]
    keys = {entry["key"] for entry in contents["vectors"]}
    if len(keys) == 1:
        (key,) = keys
        return "emb_params" if key == "emb_params" else "one encoder" if key.startswith("clip_") else "one token"
    return "clip_l and clip_g" if keys == {"clip_l", "clip_g"} else "several"


def typed(program: ProgramKey, name: str, file: str, *, encoders: int = 1, lora: str | None = None) -> list[str]:
    """The lines that tell a person how to use a word's `file` in a program, and that of its change of the model."""
    known = PROGRAMS[program]
    name = name.rpartition("/")[2]
    use = known.use_two if encoders > 1 and known.use_two else known.use
    lines = [line.format(file=file, name=name) for line in use]
    words = known.word.format(name=name)
    if lora is not None:
        lines += [line.format(file=lora) for line in known.use_lora]
        words = f"{words} {known.lora_word.format(lora=lora.removesuffix('.safetensors'))}".strip()
    return [*lines, f"prompt: {words}"]


def readers(contents: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Program -> whether it can use a file that `describe` has described, and what is typed there or why not."""
    layout, name = file_layout(contents), contents["file"].rpartition(".")[0] or contents["file"]
    found = {}
    for key, program in PROGRAMS.items():
        why = UNREAD[layout].get(key)
        if layout == "LoRA" and not program.own_form and contents["lora"]:
            why = contents["lora"]["not everywhere"]
        if not program.float16 and any(entry["type"] != "float32" for entry in contents["vectors"]):
            why = why or MISREAD
        word = program.lora_word or "(chosen by its file)" if layout == "LoRA" else program.word
        found[key] = {"reads": why is None, "type": word.format(name=name, lora=name), "why": why}
    return found
