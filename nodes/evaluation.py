"""How well pictures obey their prompts and show the subject, in the papers' measures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import numpy as np
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..core.concept import PLACEHOLDER
from ..core.inspection.evaluation import BUNDLED, CLIP, DINO, Evaluator, encoders_in, encoders_on_device
from ..core.inspection.evaluation.loading import DINO_FAMILIES
from ..core.inspection.evaluation.pictures import as_bytes
from ..core.inspection.evaluation.report import markdown_table, measure_means
from ..core.inspection.evaluation.sheets import COLUMNS, evaluation_sheet
from ..core.maths.masks import shows_something
from .comfy.evaluation_encoders import AUTO, FOLDER, NONE, bytes_of, chosen_clip, chosen_dino, folders
from .page.pictures import as_images, preview
from .schema.before_run import first_reason, why_empty, why_refused
from .schema.lists import each_mask, each_picture
from .schema.sockets import MEASURE, PREFIX, searched_as

NAMED = re.compile(r"embedding:\S+|<[^<>\s]+>")
"""A new word as it is typed to draw it."""
ROOM = 2
"""Memory to make free for the encoders, in multiples of their weights."""


class EvaluateConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "EvaluateConcept",
            display_name="Evaluate Concept",
            category=MEASURE,
            search_aliases=searched_as(
                "CLIP score, CLIP-T, CLIP-I, DINO, DINO score, DreamBench, metrics, image similarity, benchmark"
            ),
            description="Measures pictures as the papers do: CLIP-T for the prompt, CLIP-I and DINO for the subject, "
            "and with masks the same on foregrounds.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures to measure, in the order of the prompts."),
                io.Image.Input("references", tooltip="Real pictures of the subject, such as those it was trained on."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="a photo of a {}",
                    tooltip="What the pictures were asked to show, one prompt a line. {} is where the new word stood. "
                    "Eight pictures and two lines: four pictures of each, one line after the other.",
                ),
                io.String.Input(
                    "class_word",
                    default="",
                    tooltip="The ordinary word for the subject. CLIP reads it in place of the new word, which it has "
                    "never seen.",
                ),
                io.Combo.Input(
                    "clip",
                    options=[AUTO, BUNDLED, NONE, *encoders_in(folders(), ("clip",))],
                    default=AUTO,
                    tooltip=f"A CLIP in a folder of models/{FOLDER}. auto: {CLIP}, which the papers use. bundled: the "
                    "demo model's own, for its drawn world only. none: without CLIP-T and CLIP-I.",
                ),
                io.Combo.Input(
                    "dino",
                    options=[AUTO, NONE, *encoders_in(folders(), DINO_FAMILIES)],
                    default=AUTO,
                    tooltip=f"A DINO in a folder of models/{FOLDER}. auto: {DINO}, which the papers use. none: "
                    "without DINO.",
                ),
                io.Float.Input(
                    "background_fill",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="The grey that replaces the background where masks are used: 0 black, 1 white. Stated in "
                    "the table, since figures with different ones cannot be compared.",
                ),
                io.Int.Input(
                    "batch", default=16, min=1, max=1024, tooltip="Pictures read at once; fewer need less memory."
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Where the subject is on each of the images, from any segmentation or background-removal "
                    "node. Needs reference_masks too.",
                ),
                io.Mask.Input(
                    "reference_masks", optional=True, tooltip="Where the subject is on each of the references."
                ),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="The figures as Markdown, one row a prompt."),
                io.String.Output(display_name="json", tooltip="The figures of every picture, and how they were made."),
                io.Image.Output(display_name="sheet", tooltip="References and pictures with their figures."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, prompts: str | None = None, class_word: str | None = None) -> bool | str:
        return first_reason(why_empty(prompts=prompts), why_refused(prompt_lines, prompts, class_word))

    @classmethod
    def execute(
        cls,
        images: torch.Tensor | list[torch.Tensor],
        references: torch.Tensor | list[torch.Tensor],
        prompts: str,
        class_word: str,
        clip: str,
        dino: str,
        background_fill: float,
        batch: int,
        masks: torch.Tensor | list[torch.Tensor] | None = None,
        reference_masks: torch.Tensor | list[torch.Tensor] | None = None,
    ) -> io.NodeOutput:
        pictures, real = (as_bytes([one[..., :3] for one in each_picture(given)]) for given in (images, references))
        lines = prompt_lines(prompts, class_word)
        captions = captions_of(lines, len(pictures))
        if (masks is None) != (reference_masks is None):
            raise ValueError("Foregrounds are compared with foregrounds: connect both masks and reference_masks.")
        shown = checked_masks(each_mask(masks), pictures, "images")
        real_shown = checked_masks(each_mask(reference_masks), real, "references")
        evaluator = Evaluator(chosen_clip(clip), chosen_dino(dino), background_fill, batch)
        versions = len(evaluator.encoders) * (1 if masks is None else 2)
        bar = ProgressBar(versions * (len(pictures) + len(real)), node_id=cls.hidden.unique_id)

        def progress(count: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update(count)

        device = comfy.model_management.get_torch_device()
        comfy.model_management.free_memory(ROOM * bytes_of(evaluator), device)
        with encoders_on_device(evaluator.encoders, device):
            known = evaluator.references(real, real_shown, progress)
            scores = evaluator.score(pictures, captions, known, shown, progress)
        table, data = told(evaluator, lines, captions, scores)
        sheet = sheet_of(real, pictures, lines, captions, scores)
        image = as_images(np.asarray(sheet))
        text = json.dumps(data, indent=2, ensure_ascii=False)
        return io.NodeOutput(table, text, image, ui=preview(cls, image, table))


def prompt_lines(prompts: str, class_word: str) -> list[str]:
    """The prompts, one a line, with the class word for "{}". Raises ValueError for no prompt, no class word, or a new
    word by its name, which CLIP has never seen."""
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    if not lines:
        raise ValueError("There is no prompt: write what the images were asked to show, one prompt a line.")
    named = next((match[0] for line in lines if (match := NAMED.search(line))), None)
    if named is not None:
        raise ValueError(f"CLIP does not know {named}: write {PLACEHOLDER} where the new word stood in the prompts.")
    if any(PLACEHOLDER in line for line in lines) and not class_word.strip():
        raise ValueError(f"class_word is empty: CLIP needs an ordinary word where {PLACEHOLDER} stands in the prompts.")
    return [line.replace(PLACEHOLDER, class_word.strip()) for line in lines]


def captions_of(lines: Sequence[str], pictures: int) -> list[str]:
    """One caption a picture: as many pictures of each line. Raises ValueError where that does not come out even."""
    if pictures % len(lines):
        raise ValueError(f"{pictures} images cannot be shared by {len(lines)} prompts: as many of each are expected.")
    return [line for line in lines for _ in range(pictures // len(lines))]


def checked_masks(
    masks: Sequence[torch.Tensor] | None, pictures: Sequence[np.ndarray], what: str
) -> list[np.ndarray] | None:
    """One (H, W) mask a picture. Raises ValueError that names the one which is missing, empty or of another size."""
    if masks is None:
        return None
    if len(masks) != len(pictures):
        raise ValueError(f"{len(masks)} masks for {len(pictures)} {what}: one for each is expected.")
    found = [mask.detach().cpu().float().clamp(0, 1).numpy() for mask in masks]
    for number, (mask, picture) in enumerate(zip(found, pictures, strict=True), start=1):
        if mask.shape != picture.shape[:2]:
            (h, w), (height, width) = mask.shape, picture.shape[:2]
            raise ValueError(f"Mask {number} of the {what} is {w} x {h} and its picture {width} x {height}.")
        if not shows_something(mask):
            raise ValueError(f"Mask {number} of the {what} is empty: it says that the subject is nowhere.")
    return found


def told(
    evaluator: Evaluator, lines: Sequence[str], captions: Sequence[str], scores: dict[str, np.ndarray]
) -> tuple[str, dict[str, Any]]:
    """The figures as a Markdown table with what they were made with, and as plain data."""
    rows = {line: measure_means(of_prompt(scores, captions, line)) for line in dict.fromkeys(lines)}
    means, facts = measure_means(scores), evaluator.facts()
    used = ", ".join(f"{kind} {facts[kind]}" for kind in ("clip", "dino") if facts[kind])
    note = f"{len(captions)} pictures; {used}"
    if any(key.endswith("_fg") for key in scores):
        note += f"; background {evaluator.fill:g} around a foreground (FG)"
    pictures = [
        {"caption": caption, **{key: float(values[index]) for key, values in scores.items()}}
        for index, caption in enumerate(captions)
    ]
    data = {"measures": means, "prompts": rows, "pictures": pictures, "protocol": facts}
    return f"{markdown_table(rows, 'prompt', means)}\n\n{note}\n", data


def sheet_of(
    references: Sequence[np.ndarray],
    pictures: Sequence[np.ndarray],
    lines: Sequence[str],
    captions: Sequence[str],
    scores: dict[str, np.ndarray],
) -> Any:
    """A contact sheet: the references, then a row a prompt."""
    rows = []
    for line in dict.fromkeys(lines):
        own = [picture for picture, caption in zip(pictures, captions, strict=True) if caption == line]
        rows.append((line, own[:COLUMNS], of_prompt(scores, captions, line)))
    return evaluation_sheet(references[:COLUMNS], rows, "Evaluation")


def of_prompt(scores: dict[str, np.ndarray], captions: Sequence[str], line: str) -> dict[str, np.ndarray]:
    """The scores of one prompt's pictures."""
    own = np.asarray([caption == line for caption in captions])
    return {key: values[own] for key, values in scores.items()}
