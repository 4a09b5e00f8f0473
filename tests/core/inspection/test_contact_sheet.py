"""Results on a sheet: every picture in its place, whole, in its own colours and shape."""

import numpy as np
import pytest

from contextual_inversion.core.inspection.contact_sheet import PAPER, result_sheet

SIDE, GAP = 64, 8
COLOURS = [[(200, 30, 40), (30, 200, 40), (40, 30, 200)], [(10, 90, 90), (90, 10, 90), (90, 90, 10)]]
PROMPTS = ["in the water", "at night", "on lava"]


def plain(colour, height=32, width=32):
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3))


def rows(labels=("before", "after")):
    return [(label, [plain(colour) for colour in line]) for label, line in zip(labels, COLOURS, strict=True)]


def places(sheet: np.ndarray, colour) -> tuple[int, int, int, int]:
    """Where pixels of a colour are: left, top, width, height."""
    y, x = np.nonzero((sheet == colour).all(-1))
    return x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1


@pytest.mark.parametrize("side", [SIDE, 3 * SIDE])
def test_rows_are_methods_and_columns_are_prompts(side):
    sheet = np.asarray(result_sheet(rows(), PROMPTS, side=side))
    found = [[places(sheet, colour) for colour in line] for line in COLOURS]
    assert all((width, height) == (side, side) for line in found for *_, width, height in line)
    for line in found:
        assert len({top for _, top, *_ in line}) == 1, "a row is level"
        assert [one[0] - line[0][0] for one in line] == [column * (side + GAP) for column in range(3)]
    for above, below in zip(*found, strict=True):
        assert above[0] == below[0], "the same prompt stands under itself"
        assert below[1] >= above[1] + side


def test_a_picture_keeps_its_shape_and_floats_are_bytes():
    wide = np.full((20, 40, 3), 0.5, np.float32)
    sheet = np.asarray(result_sheet([("", [wide])], side=SIDE))
    _, _, width, height = places(sheet, (128, 128, 128))
    assert (width, height) == (SIDE, SIDE // 2)


def test_a_picture_of_one_line_is_still_there():
    sheet = np.asarray(result_sheet([("", [plain((9, 9, 200), 1, 5000)])], side=SIDE))
    assert places(sheet, (9, 9, 200))[2:] == (SIDE, 1)


def test_labels_take_the_room_they_need_and_no_more():
    none, short, long = (
        result_sheet(rows(labels), PROMPTS, side=SIDE) for labels in [("", ""), ("a", "b"), ("a" * 30, "b")]
    )
    assert none.width < short.width < long.width
    assert none.width == 3 * (SIDE + GAP) + GAP
    ink = (np.asarray(short)[:, : short.width - none.width] != PAPER).any()
    assert ink, "the labels are written beside the pictures"


def test_two_pictures_a_prompt_stand_beside_each_other():
    four = [plain(colour) for line in COLOURS for colour in line][:4]
    sheet = result_sheet([("", four)], ["one", "two"], side=SIDE)
    assert sheet.width == 4 * (SIDE + GAP) + GAP


@pytest.mark.parametrize(
    ("lines", "prompts", "said"),
    [
        ([("a", [plain((1, 2, 3))]), ("b", [plain((1, 2, 3))] * 2)], [], "a: 1, b: 2"),
        ([("a", [plain((1, 2, 3))] * 3)], ["one", "two"], "3 pictures a row cannot be shared by 2 prompts"),
        ([], [], "at least one picture"),
    ],
)
def test_what_cannot_be_laid_out_is_said(lines, prompts, said):
    with pytest.raises(ValueError, match=said):
        result_sheet(lines, prompts)
