"""`contextual-inversion export`: from a bundle to files of other programs, and `inspect` says the same of them."""

import json

import pytest
import torch

from contextual_inversion.cli.main import main
from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files import load_concept, save_bundle
from contextual_inversion.core.files.programs import PROGRAMS

STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def bundle(tmp_path):
    lora = {f"{STEM}.lora_down.weight": torch.ones(4, 8), f"{STEM}.lora_up.weight": torch.ones(8, 4)}
    return save_bundle(Concept("My.Dog", "dog", {"clip_l": torch.randn(3, 768)}, lora=lora), tmp_path)


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_written_is_what_inspect_says_this_program_reads(bundle, tmp_path, capsys, program):
    figures = tmp_path / "figures.json"
    out = tmp_path / "out"
    assert main(["export", str(bundle), "--for", program, "--out", str(out), "--json", str(figures)]) == 0
    told, made = capsys.readouterr().out, json.loads(figures.read_text())
    assert all(line in told for line in made["lines"])
    assert made["left_out"] == []
    assert set(made["files"]) == {"word", "LoRA"}
    assert torch.equal(load_concept(made["files"]["word"]).vectors["clip_l"], load_concept(bundle).vectors["clip_l"])
    for file in made["files"].values():
        assert main(["inspect", file, "--json", str(figures)]) == 0
        described, lines = json.loads(figures.read_text()), capsys.readouterr().out
        assert described["programs"][program]["reads"], file
        assert f"{PROGRAMS[program].title}: {described['programs'][program]['type']}" in lines


def test_a_taken_name_is_kept_and_another_program_is_named(bundle, tmp_path, capsys):
    call = ["export", str(bundle), "--for", "sdkit", "--out", str(tmp_path / "out")]
    assert main(call) == 0
    assert main(call) == 1
    assert "exists" in capsys.readouterr().err
    assert main([*call, "--overwrite"]) == 0
    assert main([*call, "--name", "my-dog", "--half"]) == 0
    assert (tmp_path / "out" / "my-dog.safetensors").is_file()
    for wrong in (["--name", "../x"], ["--name", "a b"]):
        assert main([*call, *wrong]) == 1
        assert "name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(bundle), "--for", "paint"])


@pytest.mark.parametrize(("name", "said"), [("my-word", None), ("dog", "my-dog"), ("gizmoqq2", None), ("A.b", "a-b")])
def test_a_trained_word_says_who_cannot_type_it(tmp_path, capsys, name, said):
    """What `train`, `optimize`, `predict` and `tune` write with."""
    from contextual_inversion.cli.places import write_concept, write_predicted

    learned = Concept(name, "dog", {"clip_l": torch.randn(2, 8)})
    for write in (write_concept, write_predicted):
        write(learned, tmp_path / write.__name__)
        told = capsys.readouterr().out
        assert ("Not every program" in told) == (said is not None)
        assert said is None or f"All can type {said!r}" in told
