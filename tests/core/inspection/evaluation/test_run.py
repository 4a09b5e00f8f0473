"""The protocol on folders: what is measured, kept, resumed, reported, and what bad input says."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from contextual_inversion.core.files.pictures import picture_files, read_mask, read_picture
from contextual_inversion.core.inspection.evaluation import BrokenPictureError, Evaluator
from contextual_inversion.core.inspection.evaluation.protocol import (
    ProtocolError,
    built_in_prompts,
    cells_of,
    read_dataset,
    read_prompts,
)
from contextual_inversion.core.inspection.evaluation.report import markdown_report, summarise
from contextual_inversion.core.inspection.evaluation.run import Sources, evaluate
from contextual_inversion.core.inspection.evaluation.sheets import subject_sheet
from contextual_inversion.core.prompts.sets import EVALUATION_SETS, built_in_set, built_in_sets


@pytest.fixture
def evaluator(encoders):
    return Evaluator(encoders.clip, encoders.dino, fill=0.5, batch=4)


@pytest.fixture
def measure(folders, evaluator, tmp_path):
    """Runs the evaluation of `folders`: measure(masks=True, skip_broken=False, take=None) -> list of results."""

    def run(masks=False, skip_broken=False, take=None, by=evaluator):
        cells = cells_of(read_dataset(folders / "dataset"), read_prompts(folders / "generated" / "prompts.txt"))
        sources = Sources(folders / "generated", folders / "masks" if masks else None, skip_broken)
        return list(itertools.islice(evaluate(cells, sources, by, tmp_path / "out"), take))

    return run


def test_every_cell_is_measured_by_its_own_pictures_and_caption(measure, folders, evaluator):
    results = measure(masks=True)
    assert [(r.cell.place, r.cell.caption, r.cell.prompt.category) for r in results] == [
        ("rex/00", "a dog in the snow", "place"),
        ("rex/01", "a drawing of a dog", "style"),
        ("mug/00", "a coffee mug in the snow", "place"),
        ("mug/01", "a drawing of a coffee mug", "style"),
    ]
    for result in results:
        subject = result.cell.subject.name
        masks = folders / "masks" / subject
        known = evaluator.references(
            [read_picture(file) for file in picture_files(folders / "dataset" / subject)],
            [read_mask(file) for file in picture_files(masks / "references")],
        )
        expected = evaluator.score(
            [read_picture(file) for file in picture_files(folders / "generated" / result.cell.place)],
            [result.cell.caption] * 3,
            known,
            [read_mask(file) for file in picture_files(masks / f"{result.cell.number:02d}")],
        )
        assert result.pictures == ("0.png", "1.png", "2.png")
        assert list(result.scores) == list(expected) == ["clip_t", "clip_i", "clip_i_fg", "dino", "dino_fg"]
        for key, values in expected.items():
            np.testing.assert_allclose(result.scores[key], values, atol=1e-6)


def test_a_stopped_evaluation_goes_on_and_measures_nothing_twice(measure, evaluator, monkeypatch):
    whole = [dict(result.scores) for result in measure(take=3)]
    calls = []
    score = Evaluator.score
    monkeypatch.setattr(Evaluator, "score", lambda self, *a, **k: calls.append(a[1][0]) or score(self, *a, **k))
    again = measure()
    assert calls == ["a drawing of a coffee mug"]
    assert [result.kept for result in again] == [True, True, True, False]
    for before, after in zip(whole, again, strict=False):
        for key, values in before.items():
            np.testing.assert_array_equal(after.scores[key], values)
    measure()
    assert len(calls) == 1


def test_what_changed_is_measured_anew(measure, folders, draw_picture, write_picture, encoders, tmp_path):
    measure()
    write_picture(folders / "generated" / "rex" / "01" / "1.png", draw_picture(77))
    assert [result.kept for result in measure()] == [True, False, True, True]
    write_picture(folders / "dataset" / "mug" / "00.png", draw_picture(78))
    assert [result.kept for result in measure()] == [True, True, False, False]
    (folders / "dataset" / "classes.txt").write_text("rex, puppy, animate\nmug, coffee mug, inanimate\n")
    assert [result.kept for result in measure()] == [False, False, True, True]
    assert not any(result.kept for result in measure(by=Evaluator(encoders.clip, encoders.dino, fill=0.25)))
    (tmp_path / "out" / "cells" / "rex" / "00.json").write_text("{half a fil")
    assert not measure(by=Evaluator(encoders.clip, encoders.dino, fill=0.25))[0].kept


def test_the_report_is_the_mean_over_subjects(measure, evaluator):
    results = measure(masks=True)
    report = summarise(results, evaluator.facts())
    by_subject = {
        name: np.concatenate([r.scores["dino"] for r in results if r.cell.subject.name == name]).mean()
        for name in ("rex", "mug")
    }
    assert {name: row["dino"] for name, row in report["subjects"].items()} == pytest.approx(by_subject)
    dino = report["measures"]["dino"]
    assert dino["mean"] == pytest.approx(np.mean(list(by_subject.values())))
    assert dino["low"] == pytest.approx(min(by_subject.values()))
    assert dino["high"] == pytest.approx(max(by_subject.values()))
    places = np.concatenate([r.scores["clip_t"] for r in results if r.cell.number == 0]).mean()
    assert report["categories"]["place"]["clip_t"] == pytest.approx(places)
    assert (
        report["protocol"] | {"pictures": 12, "pictures_per_prompt": 3, "prompts_per_subject": 2, "subjects": 2}
        == (report["protocol"])
    )
    assert report["skipped"] == []
    json.dumps(report, allow_nan=False)

    without = summarise(results, evaluator.facts(), ("style",))
    assert without["subjects"]["rex"]["dino"] == pytest.approx(results[0].scores["dino"].mean())
    assert without["subjects"]["rex"]["clip_t"] == report["subjects"]["rex"]["clip_t"]
    text = markdown_report(report, ["sheets/rex.png"])
    for fact in (f"{dino['mean']:.4f}", "openai/clip-vit-base-patch32", "0.5", "mug", "sheets/rex.png", "DINO-FG"):
        assert fact in text


def test_the_contact_sheet_shows_references_and_all_pictures(measure, folders):
    rex = [result for result in measure() if result.cell.subject.name == "rex"]
    sheet = np.asarray(subject_sheet(rex, folders / "generated", cell=40))
    for file in [*picture_files(folders / "generated" / "rex" / "00"), *picture_files(folders / "generated/rex/01")]:
        shown = read_picture(file)  # 40 x 40, so that it is on the sheet as it is
        assert any(
            np.array_equal(sheet[y : y + 40, x : x + 40], shown)
            for y in range(sheet.shape[0] - 39)
            for x in range(sheet.shape[1] - 39)
            if np.array_equal(sheet[y, x], shown[0, 0]) and np.array_equal(sheet[y + 20, x + 20], shown[20, 20])
        ), file.name


def break_file(path):
    """The first half of a file: what an interrupted copy leaves."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_a_broken_picture_in_the_middle_is_named_and_skipped_only_if_asked(measure, folders, evaluator):
    whole = measure()
    break_file(folders / "generated" / "mug" / "00" / "1.png")
    with pytest.raises(BrokenPictureError, match=r"mug/00/1\.png cannot be read"):
        measure()
    results = measure(skip_broken=True)
    assert results[2].pictures == ("0.png", "2.png")
    np.testing.assert_allclose(results[2].scores["dino"], whole[2].scores["dino"][[0, 2]], atol=1e-6)
    assert [result.kept for result in results] == [True, True, False, True], "nothing that was measured is lost"
    report = summarise(results, evaluator.facts())
    assert len(report["skipped"]) == 1
    assert "mug/00/1.png" in markdown_report(report)
    assert report["protocol"]["pictures_per_prompt"] == [2, 3]
    with pytest.raises(BrokenPictureError):
        measure()  # what was skipped once is not silently skipped later


def test_broken_references_and_masks(measure, folders, write_picture, evaluator):
    masks = folders / "masks" / "rex"
    write_picture(masks / "00" / "2.png", np.zeros((40, 40), np.uint8))
    with pytest.raises(BrokenPictureError, match=r"rex/00/2\.png is empty"):
        measure(masks=True)
    results = measure(masks=True, skip_broken=True)
    assert np.isnan(results[0].scores["dino_fg"]).tolist() == [False, False, True]
    assert not np.isnan(results[0].scores["dino"]).any(), "the picture counts where no mask is needed"
    again = measure(masks=True, skip_broken=True)
    assert again[0].kept
    np.testing.assert_array_equal(again[0].scores["dino_fg"], results[0].scores["dino_fg"])
    (masks / "01" / "0.png").unlink()
    write_picture(masks / "01" / "1.png", np.full((8, 9), 255, np.uint8))
    said = summarise(measure(masks=True, skip_broken=True), evaluator.facts())["skipped"]
    assert any("no mask 0.png in rex/01" in note for note in said)
    assert any("rex/01/1.png is 9 x 8, its picture 40 x 40" in note for note in said)
    break_file(folders / "dataset" / "rex" / "00.png")
    with pytest.raises(BrokenPictureError, match=r"rex/00\.png cannot be read"):
        measure()
    said = summarise(measure(skip_broken=True), evaluator.facts())["skipped"]
    assert len(said) == 1, "once, and not for every prompt"
    assert "rex/00.png cannot be read" in said[0]
    break_file(folders / "dataset" / "rex" / "01.png")
    with pytest.raises(BrokenPictureError, match="no reference of rex can be used"):
        measure(skip_broken=True)


def test_missing_cells_are_all_named_before_anything_is_measured(measure, folders, tmp_path):
    for number in ("00", "01"):
        for file in picture_files(folders / "generated" / "mug" / number):
            file.unlink()
    with pytest.raises(ProtocolError, match="2 of 4 prompts have no pictures: mug/00, mug/01"):
        measure()
    assert not (tmp_path / "out").exists()
    results = measure(skip_broken=True)
    assert [len(result.pictures) for result in results] == [3, 3, 0, 0]
    for number in ("00", "01"):
        for file in picture_files(folders / "generated" / "rex" / number):
            file.unlink()
    with pytest.raises(ProtocolError, match="expected in folders such as rex/00"):
        measure(skip_broken=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rex\n", "line 1: wanted is 'folder, class name, kind'"),
        ("rex, dog, plant\n", "the kind is one of animate, inanimate, live, object, not 'plant'"),
        ("rex, dog\nrex, cat\n", "line 2: 'rex' is named twice"),
        ("../secrets, dog\n", "not the name of a folder"),
        ("ghost, dog\n", "no pictures in ghost/"),
        ("# nothing\n", "it names no subject"),
    ],
)
def test_a_list_of_classes_with_mistakes(folders, text, said):
    (folders / "dataset" / "classes.txt").write_text(text)
    with pytest.raises(ProtocolError, match=said.replace("(", r"\(")):
        read_dataset(folders / "dataset")


def test_the_lines_of_dreambench_itself_are_understood(folders):
    (folders / "dataset" / "classes.txt").write_text("subject_name,class\nrex,dog,live\nmug,coffee mug,object\n")
    found = read_dataset(folders / "dataset")
    assert [(s.name, s.class_name, s.kind) for s in found] == [
        ("rex", "dog", "animate"), ("mug", "coffee mug", "inanimate")
    ]  # fmt: skip
    assert [s.name for s in read_dataset(folders / "dataset", ["mug"])] == ["mug"]
    with pytest.raises(ProtocolError, match="no subject 'cup'"):
        read_dataset(folders / "dataset", ["cup"])
    (folders / "dataset" / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no classes\.txt.*one line a subject"):
        read_dataset(folders / "dataset")


def test_the_built_in_prompts_have_the_protocols_shape(folders):
    """METHODS.md 2.7: 25 prompts; DreamBench has 20 places and 5 properties, creatures 10 places and 10 outfits."""
    counts = {
        kind: {c: sum(p.category == c for p in built_in_prompts(kind)) for c in ("place", "outfit", "property")}
        for kind in ("animate", "inanimate")
    }
    assert counts["animate"] == {"place": 10, "outfit": 10, "property": 5}
    assert counts["inanimate"] == {"place": 20, "outfit": 0, "property": 5}
    subjects = read_dataset(folders / "dataset")
    assert len(cells_of(subjects)) == 50
    # METHODS.md 1.9: 20 prompts, of which those that change the looks on purpose can be left out.
    for kind, subject in zip(("animate", "inanimate"), subjects, strict=True):
        cells = [cell for cell in cells_of(subjects, "core") if cell.subject is subject]
        assert [cell.prompt.template for cell in cells] == list(built_in_set(f"evaluation_{kind}").prompts)
        assert len(cells) == 20
        assert "style" in {cell.prompt.category for cell in cells}
    trained = {prompt for name in (*built_in_sets(), *EVALUATION_SETS) for prompt in built_in_set(name).prompts}
    for kind in counts:
        assert not {prompt.template for prompt in built_in_prompts(kind)} & trained
    (folders / "dataset" / "classes.txt").write_text("rex, dog\n")
    with pytest.raises(ProtocolError, match=r"animate or inanimate.*rex"):
        cells_of(read_dataset(folders / "dataset"))


def test_sixteen_bits_and_transparency_are_read_as_they_look(tmp_path):
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    found = read_picture(tmp_path / "deep.png")
    np.testing.assert_array_equal(found[..., 0], (ramp / 257).round())
    cut_out = np.full((4, 6, 4), 255, dtype=np.uint8)
    cut_out[:, 3:, 3] = 0
    Image.fromarray(cut_out).save(tmp_path / "cut_out.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "cut_out.png"), cut_out[..., 3] / 255)
    assert (read_picture(tmp_path / "cut_out.png") == 255).all()
