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


def test_what_is_no_concept_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "renamed.safetensors"
    torch.save({"x": torch.ones(1)}, path)
    for wrong in (path, tmp_path / "absent.safetensors"):
        assert main(["inspect", str(wrong)]) == 1
        captured = capsys.readouterr()
        assert wrong.name in captured.err
        assert "Traceback" not in captured.err
        assert captured.out == ""
