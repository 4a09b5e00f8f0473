"""What a program is given of a concept: files that it reads whole, the lines to type, and what it does without."""

import copy
import runpy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from contextual_inversion.core.files import ConceptFileError, describe, load_concept
from contextual_inversion.core.files.export import export
from contextual_inversion.core.files.kinds import XTI_LAYERS
from contextual_inversion.core.files.programs import PROGRAMS, UNREAD, readers
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.lora import from_lora, kohya_names
from contextual_inversion.core.models.tiny import load_tiny

from .conftest import WIDTHS, concept

STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
NORM = {"text_encoders.clip_l.transformer.text_model.final_layer_norm.diff": torch.ones(4)}


@pytest.mark.parametrize("family", WIDTHS)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_program_gets_the_rows_and_can_read_every_file(tmp_path, family, program, dtype):
    learned = concept(WIDTHS[family], name="my-dog", layers=16)
    if program == "stable-diffusion-cpp" and dtype == torch.float16:
        with pytest.raises(ConceptFileError, match="float32"):
            export(learned, program, tmp_path, dtype=dtype)
        return
    made = export(learned, program, tmp_path, dtype=dtype)
    assert {path.parent for path in made.files.values()} == {tmp_path}
    for kind, path in made.files.items():
        assert describe(path)["programs"][program]["reads"], (kind, describe(path)["programs"][program])
        assert any(path.name in line for line in made.lines), "every file is named in the lines"
    word = load_concept(made.files["word"])
    assert all(torch.equal(word.vectors[name], value.to(dtype).float()) for name, value in learned.vectors.items())
    assert ("XTI" in made.files) == (program == "kohya" and family != "SDXL")
    if "XTI" in made.files:
        assert set(load_file(made.files["XTI"])) == set(XTI_LAYERS)
    assert any("vectors of each layer" in line for line in made.left_out) == ("XTI" not in made.files)
    assert any(line.startswith("prompt: ") and "my-dog" in line for line in made.lines)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_change_is_held_whole_or_said_to_be_left_out(tmp_path, program):
    """What only ComfyUI applies is not written for the others by half."""
    full = {f"{STEM}.diff": torch.randn(4, 6)}
    for number, (lora, everywhere) in enumerate([(full, True), (full | NORM, False)]):
        learned = replace(concept({"clip_l": 8}, name="my-dog", layers=0), lora=lora)
        made = export(learned, program, tmp_path / str(number))
        assert ("LoRA" in made.files) == (everywhere or program == "comfyui")
        assert bool(made.left_out) == ("LoRA" not in made.files)
        assert all("norms, biases" in line for line in made.left_out)
        if program == "comfyui":
            assert set(load_file(made.files["LoRA"])) == set(lora)


def test_a_name_that_the_program_cannot_type_is_said_with_one_it_can(tmp_path):
    learned = concept({"clip_l": 8}, name="My.Dog", lora=False, layers=0)
    for program, complains in {"comfyui": False, "invokeai": False, "sdkit": True, "diffusers": True}.items():
        made = export(learned, program, tmp_path / program)
        assert any("'my-dog'" in line for line in made.lines) == complains
        assert not any("'my-dog'" in line for line in export(learned, program, tmp_path / program, "my-dog").lines)


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    learned = concept({"clip_l": 8}, layers=0)
    for name, program in (("../x", "comfyui"), ("x", "paint")):
        with pytest.raises(ValueError, match=r"name|no program"):
            export(learned, program, tmp_path / "root", name)
    assert not (tmp_path / "root").exists()
    export(learned, "diffusers", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "dog.safetensors").unlink()
    with pytest.raises(FileExistsError):
        export(concept({"clip_l": 8}, layers=0, seed=1), "diffusers", tmp_path)
    assert not (tmp_path / "dog.safetensors").exists(), "both or neither"
    assert (tmp_path / "dog_lora.safetensors").read_bytes() == before[tmp_path / "dog_lora.safetensors"]


def test_the_tables_name_programs_that_there_are():
    assert all(set(who) <= set(PROGRAMS) for who in UNREAD.values())
    for kind in UNREAD:
        contents = {"kind": kind, "file": "x.y.safetensors", "vectors": [], "lora": {"not everywhere": None}}
        if kind in ("XTI", "bundle", "LoRA"):
            assert set(readers(contents)) == set(PROGRAMS)


@pytest.fixture(scope="module")
def tiny():
    return DiffusersModel.from_tiny(load_tiny())


@pytest.fixture
def pipeline(tiny):
    """What a Stable Diffusion pipeline is to diffusers' loaders of words and LoRAs."""
    from diffusers import DiffusionPipeline
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin

    from contextual_inversion.core.models.tiny.tokenizer import tiny_tokenizer

    class Pipeline(DiffusionPipeline, TextualInversionLoaderMixin, StableDiffusionLoraLoaderMixin):
        def __init__(self, tokenizer, text_encoder, unet):
            super().__init__()
            self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet)

    text_encoder = copy.deepcopy(tiny.text_encoders["clip_l"].module)
    # A tokenizer of its own: a deep copy decodes otherwise than the one it is a copy of (transformers 5.23).
    return Pipeline(tiny_tokenizer.__wrapped__(), text_encoder, copy.deepcopy(tiny.unet))


def test_diffusers_does_what_the_lines_say(tmp_path, tiny, pipeline, monkeypatch):
    """The lines are run as they stand: rows equal, and every layer changes as it does in memory."""
    generator = torch.Generator().manual_seed(0)
    stems, lora = {name: stem for stem, name in kohya_names(tiny).items()}, {}
    for number, (name, layer) in enumerate(tiny.linear_layers().items()):
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            outputs, inputs = layer.weight.shape
            lora[f"{stems[name]}.lora_down.weight"] = torch.randn(1 + number % 3, inputs, generator=generator)
            lora[f"{stems[name]}.lora_up.weight"] = torch.randn(outputs, 1 + number % 3, generator=generator)
            lora[f"{stems[name]}.alpha"] = torch.tensor(0.5 + number)
        elif name.endswith("attn1.to_q"):
            lora[f"{stems[name]}.diff"] = torch.randn(layer.weight.shape, generator=generator)
    q = "clip_l.text_model.encoder.layers.1.self_attn.q_proj"
    lora |= {f"{stems[q]}.lora_down.weight": torch.randn(2, 128, generator=generator)}
    lora |= {f"{stems[q]}.lora_up.weight": torch.randn(128, 2, generator=generator)}
    learned = replace(concept({"clip_l": 128}, rows=3, name="my-dog", layers=0), lora=lora)
    made = export(learned, "diffusers", tmp_path)
    monkeypatch.chdir(tmp_path)
    *lines, prompt = made.lines
    (tmp_path / "lines.py").write_text("\n".join(lines))
    runpy.run_path(str(tmp_path / "lines.py"), {"pipe": pipeline})
    text = pipeline.maybe_convert_prompt(f"a photo of {prompt.removeprefix('prompt: ')} on grass", pipeline.tokenizer)
    ids = torch.tensor([one for one in pipeline.tokenizer(text).input_ids if one >= 49408])
    rows = pipeline.text_encoder.get_input_embeddings().weight[ids].detach()
    assert torch.equal(rows, learned.vectors["clip_l"])
    deltas, found = from_lora(tiny, lora), changes_in(pipeline)
    assert set(deltas) <= set(found)
    for name, value in found.items():
        expected = torch.zeros_like(value) if name not in deltas else weight_of(deltas[name])
        assert torch.allclose(value, expected, atol=1e-4), name


def changes_in(pipeline) -> dict[str, torch.Tensor]:
    """Layer -> what diffusers adds to its weight."""
    from peft.tuners.lora import LoraLayer

    parts = {"": pipeline.unet, "clip_l.": pipeline.text_encoder}
    return {
        prefix + name: layer.get_delta_weight(next(iter(layer.scaling))).detach()
        for prefix, part in parts.items()
        for name, layer in part.named_modules()
        if isinstance(layer, LoraLayer)
    }


def weight_of(delta) -> torch.Tensor:
    return delta.weight() if callable(delta.weight) else delta.scale * delta.weight
