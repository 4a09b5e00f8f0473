"""`inspect --model` and `attention-report`: what they print, write and return is the same, and mistakes are told."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from contextual_inversion.cli.main import main
from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files import load_concept, save_bundle, save_embedding
from contextual_inversion.core.inspection.world.attention_report import attention_report
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.lora import to_lora
from contextual_inversion.core.models.low_rank import LowRankDelta
from contextual_inversion.core.models.tiny import load_tiny
from contextual_inversion.core.world.concepts import CONCEPTS

PROMPTS = "a photo of a {} in the snow | snow | a photo in the snow\na {} on the beach | beach | a photo on the beach\n"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Embedding files of the tiny encoder: `twin` holds the row of "cat", `between` the mean of two rows."""
    tiny, folder = load_tiny(), tmp_path_factory.mktemp("words")
    table = tiny.text_encoder.get_input_embeddings().weight.detach()
    cat, dog = (table[tiny.tokenizer(word, add_special_tokens=False).input_ids] for word in ("cat", "dog"))
    assert cat.shape == dog.shape == (1, 128)
    made = {"twin": cat, "between": (cat + dog) / 2}
    return {name: save_embedding(Concept(name, "cat", {"clip_l": row}), folder) for name, row in made.items()}


def test_a_word_is_measured_against_another_and_its_class_word(words, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    files = {name: tmp_path / "new" / name for name in ("plot.png", "table.md", "figures.json")}
    asked = ["inspect", str(words["twin"]), "--model", "tiny", "--against", str(words["between"])]
    asked += ["--prompts", str(tmp_path / "prompts.txt"), "--steps", "2"]
    assert main([*asked, *(f"--{path.stem}={path}" for path in files.values() if path.suffix != ".json")]) == 0
    printed = capsys.readouterr().out
    table = files["table.md"].read_text()
    assert table.strip() in printed
    with Image.open(files["plot.png"]) as plot:
        assert plot.width == 960
        assert len(np.unique(np.asarray(plot.convert("RGB")).reshape(-1, 3), axis=0)) > 20, "something is drawn"

    assert main([*asked, "--images", "0", "--json", str(tmp_path / "figures.json")]) == 0
    diagnosis = json.loads((tmp_path / "figures.json").read_text())["diagnosis"]
    twin, between, cat = diagnosis["subjects"]
    assert [twin["label"], between["label"], cat["label"]] == ["twin", "between", "cat (class word)"]
    assert twin["means"] == pytest.approx(cat["means"], abs=1e-5), "the class word's own row is the class word"
    assert between["means"] != pytest.approx(cat["means"], abs=1e-3)
    assert {"sim1", "sim2"} == set(twin["means"]), "no pictures, no SKL"
    # The table says what the figures say; its first rows are the means.
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    for subject in (twin, between, cat):
        row = next(row for row in cells if row and row[0] == subject["label"])
        wanted = [subject["means"]["sim1"], subject["means"]["sim2"]]
        assert [float(row[1]), float(row[2])] == pytest.approx(wanted, rel=1e-3, abs=1e-6)
        assert len(row) == 5
        assert min(float(row[3]), float(row[4])) > 0, "SKL"


def test_a_prompt_file_without_a_place_is_told_by_line(words, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a {} in the snow\na cat in the snow\n")
    asked = ["inspect", str(words["twin"]), "--model", "tiny", "--prompts", str(tmp_path / "prompts.txt")]
    assert main(asked) == 1
    assert "line 2" in capsys.readouterr().err


def test_a_prompt_file_may_be_written_on_windows_and_hold_comments(words, tmp_path):
    figures = []
    for text in (PROMPTS, "\ufeff# mine\n\n" + PROMPTS.replace("\n", "  # comment\n").replace("\n", "\r\n")):
        (tmp_path / "prompts.txt").write_bytes(text.encode())
        asked = ["inspect", str(words["between"]), "--model", "tiny", "--prompts", str(tmp_path / "prompts.txt")]
        assert main([*asked, "--images", "0", "--json", str(tmp_path / "figures.json")]) == 0
        figures.append(json.loads((tmp_path / "figures.json").read_text())["diagnosis"])
    assert figures[0] == figures[1]


@pytest.mark.parametrize("content", [b"", b"# nothing\r\n", "a {} in the snow".encode("utf-16")])
def test_a_prompt_file_without_a_prompt_is_no_prompt_file(words, tmp_path, capsys, content):
    (tmp_path / "prompts.txt").write_bytes(content)
    asked = ["inspect", str(words["between"]), "--model", "tiny", "--prompts", str(tmp_path / "prompts.txt")]
    assert main([*asked, "--images", "0"]) == 1
    assert "prompt" in (said := capsys.readouterr().err)
    assert "Traceback" not in said


def test_what_only_a_diagnosis_can_do_needs_a_model(words, tmp_path, capsys):
    assert main(["inspect", str(words["twin"]), "--plot", str(tmp_path / "plot.png")]) == 1
    assert "--plot" in (said := capsys.readouterr().err)
    assert "--model" in said


def test_attention_is_reported_as_printed(words, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["attention-report", "--n", "3", "--seed", "5", "--json", str(path)]) == 0
    printed, report = capsys.readouterr().out, json.loads(path.read_text())
    assert report["scenes"] == 3
    for label, row in (("layers of 16 x 16", report), ("all layers", report["all_layers"])):
        (line,) = [line for line in printed.splitlines() if line.startswith(label)]
        numbers = [float(number) for number in line[42:].split()]
        keys = ("subject_inside", "subject_over_chance", "background_outside", "background_over_chance")
        assert numbers == pytest.approx([row[key] for key in keys], abs=6e-3)
        assert 0 < row["subject_inside"] < 1
    for row in (*report["layers"], *report["timesteps"]):
        assert 0 < row["subject_inside"] < 1
        assert 0 < row["background_outside"] < 1
    assert len(report["layers"]) > 3


def test_a_learned_word_takes_its_concepts_place(words, tmp_path, capsys):
    name = next(name for name, concept in CONCEPTS.items() if concept.super_category == "cat")
    given = []
    for more in ([], ["--file", str(words["twin"])], ["--file", str(words["between"])]):
        path = tmp_path / "figures.json"
        assert main(["attention-report", "--n", "2", "--concept", name, *more, "--json", str(path)]) == 0
        given.append(json.loads(path.read_text()))
    by_name, by_twin, by_other = given
    assert [one["filled_with"] for one in given] == ["class words", "vectors", "vectors"]
    assert by_twin["subject_inside"] == pytest.approx(by_name["subject_inside"], rel=1e-4)
    assert by_other["subject_inside"] != pytest.approx(by_name["subject_inside"], rel=1e-4)
    capsys.readouterr()
    assert main(["attention-report", "--n", "1", "--concept", "unicorn"]) == 1
    assert name in capsys.readouterr().err
    assert main(["attention-report", "--n", "1", "--file", str(words["twin"])]) == 1
    assert "which held-out concept" in capsys.readouterr().err


def test_all_that_was_learned_beside_a_word_is_in_force(words, tmp_path, capsys):
    """Its LoRA and its vectors for every layer were left out without a word."""
    model = DiffusersModel.from_tiny(load_tiny())
    generator = torch.Generator().manual_seed(0)
    rows = load_concept(words["between"]).vectors["clip_l"]
    many = rows + 0.3 * torch.randn((len(model.cross_attention_layers()), *rows.shape), generator=generator)
    layers, deltas = model.linear_layers(), {}
    for name in (name for name in layers if name.endswith("attn2.to_k")):
        delta = LowRankDelta.initial(layers[name], 2, generator=generator)
        deltas[name] = LowRankDelta(delta.a.detach(), torch.randn(delta.b.shape, generator=generator))
    parts = {"plain": {}, "layers": {"layer_vectors": {"clip_l": many}}, "lora": {"lora": to_lora(model, deltas)}}
    found = {}
    for name, learned in parts.items():
        file = save_bundle(Concept(name, "cat", {"clip_l": rows}, **learned), tmp_path)
        asked = ["attention-report", "--n", "2", "--concept", "horned-cat", "--file", str(file)]
        assert main([*asked, "--json", str(tmp_path / "figures.json")]) == 0
        found[name] = json.loads((tmp_path / "figures.json").read_text())["subject_inside"]
        concept = load_concept(file)
        own = {"layers": concept.layer_vectors, "lora": concept.lora}
        expected = attention_report(model, 2, concept.vectors, concept="horned-cat", **own)["subject_inside"]
        assert found[name] == pytest.approx(expected, rel=1e-5)
    assert len({round(value, 6) for value in found.values()}) == 3
