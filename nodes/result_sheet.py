"""What came of a graph on one labelled sheet, large enough to be seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..core.inspection.contact_sheet import result_sheet
from .page.pictures import as_images
from .schema.lists import each_picture, lines_of
from .schema.sockets import LOOK, PREFIX, searched_as

ROWS = 4
FILE = "result_sheet"


class ResultSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "ResultSheet",
            display_name="Result Sheet",
            category=LOOK,
            search_aliases=searched_as(
                "contact sheet, image grid, XY plot, compare images, comparison, labelled images, before and after, "
                "side by side"
            ),
            description="One labelled sheet of results: a row for each method, a column for each prompt, all of it "
            "large enough to be seen.",
            inputs=[
                io.Image.Input("images", tooltip="The first row: a picture of each prompt, as a batch or a list."),
                io.String.Input(
                    "labels",
                    default="",
                    placeholder="before | after",
                    tooltip="What stands beside the rows, between upright strokes: before | after. The first is for "
                    "images, the next for images_2.",
                ),
                io.String.Input("title", default="", tooltip="What stands above everything. Empty: nothing."),
                io.Int.Input(
                    "side",
                    default=256,
                    min=64,
                    max=1024,
                    step=8,
                    advanced=True,
                    tooltip="Side of each picture on the sheet, in pixels; the letters grow with it.",
                ),
                io.Boolean.Input(
                    "save",
                    default=True,
                    advanced=True,
                    tooltip="Also keep it, with the workflow, in ComfyUI's output folder as result_sheet and a number.",
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    optional=True,
                    force_input=True,
                    tooltip="What stands above the columns: a line or a text for each, in the order of the pictures.",
                ),
                *(
                    io.Image.Input(f"images_{row}", optional=True, tooltip=f"Row {row}: the same prompts again.")
                    for row in range(2, ROWS + 1)
                ),
            ],
            outputs=[io.Image.Output(display_name="sheet", tooltip="The sheet as one picture.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            is_input_list=True,
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor | list[torch.Tensor],
        labels: str,
        title: str,
        side: int,
        save: bool,
        prompts: str | list[str] = "",
        **further: torch.Tensor | list[torch.Tensor],
    ) -> io.NodeOutput:
        given = {1: images, **{int(name.removeprefix("images_")): rows for name, rows in sorted(further.items())}}
        names = dict(enumerate(map(str.strip, labels.split("|")), 1))
        rows = [(names.get(place, ""), as_arrays(pictures)) for place, pictures in given.items()]
        sheet = result_sheet(rows, lines_of(prompts), title=title.strip(), side=side)
        picture = as_images(np.asarray(sheet))
        return io.NodeOutput(picture, ui=shown(cls, picture, save))


def as_arrays(images: torch.Tensor | list[torch.Tensor]) -> list[np.ndarray]:
    """Every picture (H, W, 3) in [0, 1]."""
    return [picture[..., :3].float().cpu().numpy() for picture in each_picture(images)]


def shown(cls: type[io.ComfyNode], picture: torch.Tensor, save: bool) -> dict[str, Any]:
    """The sheet on the node, and in the output folder where it is to be saved; words where the disk takes none."""
    try:
        if save:
            return ui.ImageSaveHelper.get_save_images_ui(picture, FILE, cls).as_dict()
        return ui.PreviewImage(picture, cls=cls).as_dict()
    except OSError as error:
        return ui.PreviewText(f"(no picture: {error})").as_dict()
