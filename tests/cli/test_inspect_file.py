"""`contextual-inversion inspect`: says what is there, and one clear sentence where nothing is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from contextual_inversion.cli.main import main
from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files import save_bundle, save_embedding
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.tiny import load, load_tiny

WEIGHTS = Path(load.__file__).parent / "weights"


def small_concept() -> Concept:
    down = "lora_unet_mid_block_attentions_0_proj_in"
    lora = {f"{down}.lora_down.weight": torch.ones(4, 8), f"{down}.lora_up.weight": torch.ones(8, 4)}
    vectors = {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}
    return Concept("dog", "puppy", vectors, lora=lora, hard_token="hound", provenance={"steps": 300})


def test_a_bundle_is_told_whole(tmp_path, capsys):
    path = save_bundle(small_concept(), tmp_path)
    assert main(["inspect", str(path), "--json", str(tmp_path / "figures.json")]) == 0
    told = capsys.readouterr().out
    for fact in ("bundle", "dog", "puppy", "hound", "768", "1280", "2 vectors", "rank 4", "steps: 300", "mid_block"):
        assert fact in told
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["kind"] == "bundle"
    assert {entry["encoder"]: entry["width"] for entry in figures["vectors"]} == {"clip_l": 768, "clip_g": 1280}
    assert [round(norm**2) for entry in figures["vectors"] for norm in entry["norms"]] == [1280, 1280, 768, 768]
    assert figures["lora"]["ranks"] == [4]
    assert figures["lora"]["numbers"] == 64
    assert figures["provenance"] == {"steps": 300}


def test_an_embedding_has_no_lora(tmp_path, capsys):
    path = save_embedding(small_concept(), tmp_path, dtype=torch.float16)
    assert main(["inspect", str(path)]) == 0
    told = capsys.readouterr().out
    assert "embedding" in told
    assert "float16" in told
    assert "LoRA" not in told


@pytest.mark.parametrize(("kind", "trained"), [("contextualizer", "masked_tokens"), ("tuning_encoder", "contrastive")])
def test_a_network_is_told_with_its_model_and_training(kind, trained, tmp_path, capsys):
    path = WEIGHTS / f"{kind}.safetensors"
    assert main(["inspect", str(path), "--json", str(tmp_path / "figures.json")]) == 0
    told, figures = capsys.readouterr().out, json.loads((tmp_path / "figures.json").read_text())
    fingerprint = load_tiny_encoder_fingerprint()
    assert fingerprint in told
    assert fingerprint in json.dumps(figures["belongs_to"])
    assert trained in told
    with safe_open(path, "pt") as file:
        assert figures["numbers"] == sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    assert main(["inspect", str(path), "--model", "tiny"]) == 1
    assert "no word is in it" in capsys.readouterr().err


def load_tiny_encoder_fingerprint() -> str:
    (encoder,) = DiffusersModel.from_tiny(load_tiny()).text_encoders.values()
    return encoder.fingerprint


HOSTILE = "a\x1b[31mred\x1b]0;title\x07\x9b\u202e\nb"


def test_nothing_in_a_file_drives_the_terminal(tmp_path, capsys):
    """Its name, its word, its layers and its metadata, and the error of one that cannot be read."""
    from safetensors.torch import save_file

    facts = {
        "version": 1,
        "name": HOSTILE,
        "class_word": HOSTILE,
        "hard_token": HOSTILE,
        "provenance": {HOSTILE: HOSTILE},
    }
    tensors = {
        f"bundle_emb.{HOSTILE}.clip_l": torch.ones(1, 8),
        f"lora_unet_{HOSTILE}.lora_down.weight": torch.ones(1, 1),
    }
    path = tmp_path / f"{HOSTILE}.safetensors"
    save_file(tensors, path, {"contextual_inversion": json.dumps(facts), HOSTILE: HOSTILE})
    assert main(["inspect", str(path)]) == 0
    save_file({"x": torch.ones(1, 1, 1)}, tmp_path / f"{HOSTILE}{HOSTILE}")
    assert main(["inspect", str(tmp_path / f"{HOSTILE}{HOSTILE}")]) == 1
    assert main(["export", str(path), "--for", "comfyui", "--name", HOSTILE]) == 1
    for text in capsys.readouterr():
        assert "\\x1b[31mred" in text
        assert not [character for character in text if not character.isprintable() and character != "\n"]


@pytest.mark.parametrize("provenance", [["a", "list"], "text", 3, None])
def test_provenance_of_any_kind_is_told(tmp_path, capsys, provenance):
    from safetensors.torch import load_file, save_file

    for kind in ("contextualizer", "tuning_encoder"):
        path = WEIGHTS / f"{kind}.safetensors"
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["contextual_inversion"])
        save_file(
            load_file(path), tmp_path / "odd", {"contextual_inversion": json.dumps({**facts, "provenance": provenance})}
        )
        assert main(["inspect", str(tmp_path / "odd")]) == 0
        assert (json.dumps(provenance) in capsys.readouterr().out) or provenance is None
        (tmp_path / "odd").unlink()


def test_a_lora_of_another_program_is_told(tmp_path, capsys):
    from safetensors.torch import save_file

    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file(
        {f"{name}.lora.down.weight": torch.ones(4, 320), f"{name}.lora.up.weight": torch.ones(320, 4)}, tmp_path / "x"
    )
    assert main(["inspect", str(tmp_path / "x")]) == 0
    told = capsys.readouterr().out
    assert "x: LoRA" in told
    assert "1 layers, rank 4" in told
    assert "vector" not in told


def test_what_is_no_concept_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "renamed.safetensors"
    torch.save({"x": torch.ones(1)}, path)
    for wrong in (path, tmp_path / "absent.safetensors"):
        assert main(["inspect", str(wrong)]) == 1
        captured = capsys.readouterr()
        assert wrong.name in captured.err
        assert "Traceback" not in captured.err
        assert captured.out == ""
