"""The nodes' contract with people's workflows, and the demo, prompt and regularizer nodes in real graphs."""

import re
from types import SimpleNamespace

import pytest
import torch

PREFIX = "ContextualInversion"
NAMES = {
    "ResultSheet": (
        ["sheet"],
        ["images", "labels", "title", "side", "save", "prompts", "images_2", "images_3", "images_4"],
    ),
    "LoadDemoModel": (["model", "clip", "vae"], ["kind"]),
    "DemoImages": (
        ["images", "masks", "class_word", "prompts"],
        ["concept", "count", "background", "seed", "companion"],
    ),
    "ContextPrompts": (["prompts"], ["built_in_set", "own_prompts", "file", "text"]),
    "CoReRegularizer": (
        ["regularizer"],
        [
            "prompts",
            "weights",
            "embedding_weight",
            "attention_weight",
            "rescale_mode",
            "embedding_axis",
            "attention_mode",
            "attention_batch",
            "regularizer",
        ],
    ),
    "LoadContextualizer": (["contextualizer"], ["file", "clip"]),
    "PretrainContextualizer": (
        ["contextualizer", "loss", "report"],
        [
            "clip",
            "text_encoder",
            "captions",
            "file",
            "real_share",
            "size",
            "loss_mode",
            "steps",
            "batch",
            "learning_rate",
            "mask_rate",
            "held_out",
            "seed",
            "continue_interrupted",
        ],
    ),
    "SaveContextualizer": (["file"], ["contextualizer", "name", "if_taken", "half_precision"]),
    "MLMRegularizer": (
        ["regularizer"],
        [
            "contextualizer",
            "prompts",
            "weights",
            "weight",
            "mask_rate",
            "batch",
            "beside_class_word",
            "regularizer",
            "contextualizer_2",
        ],
    ),
    "NearestWordRegularizer": (
        ["regularizer"],
        ["weight", "norm_weight", "neighbours", "temperature", "words", "tuning_encoder", "regularizer"],
    ),
    "TrainConcept": (
        ["concept", "loss"],
        [
            "model",
            "clip",
            "vae",
            "images",
            "class_word",
            "name",
            "train",
            "recipe",
            "steps",
            "learning_rate",
            "batch",
            "vectors",
            "seed",
            "preview_every",
            "preview_prompt",
            "continue_interrupted",
            "masks",
            "regularizer",
            "concept",
            "rank",
            "weight_rate",
            "prior_preservation",
            "prior_pictures",
            "keep_latents",
            "resolution",
            "gradient_checkpointing",
            "masks_mean",
            "captions",
            "encoders",
            "regularize_every",
        ],
    ),
    "ApplyConcept": (
        ["model", "clip"],
        ["model", "clip", "concept", "strength_model", "strength_clip", "name", "blend_with", "blend", "start_percent"],
    ),
    "SaveConcept": (
        ["text"],
        ["concept", "name", "if_taken", "embedding_file", "half_precision", "lora_file", "layout"],
    ),
    "LoadConcept": (["concept", "text"], ["file", "clip", "class_word", "embedding"]),
    "EvaluateConcept": (
        ["table", "json", "sheet"],
        [
            "images",
            "references",
            "prompts",
            "class_word",
            "clip",
            "dino",
            "background_fill",
            "batch",
            "masks",
            "reference_masks",
        ],
    ),
}


def call(name: str, /, **inputs: object) -> dict:
    """The prompt entry of one of this pack's nodes."""
    return {"class_type": PREFIX + name, "inputs": inputs}


ROOMS = ("Train", "Use", "Look", "Measure", "Demo")
"""What the nodes are sorted by in ComfyUI's lists."""


@pytest.mark.parametrize("name", NAMES)
def test_a_node_keeps_its_id_and_sockets(comfyui, name):
    info = comfyui.object_info({PREFIX + name})[PREFIX + name]
    outputs, inputs = NAMES[name]
    order = info["input_order"]
    # Shared workflows find widgets by their place: new inputs may only come after these.
    assert [*order.get("required", []), *order.get("optional", [])] == inputs
    assert info["output_name"] == outputs
    assert info["category"].partition("/")[::2] in {("Contextual Inversion", room) for room in ROOMS}
    assert info["description"]


@pytest.mark.parametrize("name", NAMES)
def test_everything_on_a_node_is_explained(comfyui, repository, name):
    info = comfyui.object_info({PREFIX + name})[PREFIX + name]
    inputs = [entry for group in info["input"].values() for entry in group.items() if not isinstance(entry[1], str)]
    silent = [key for key, spec in inputs if key not in ("unique_id", "prompt", "extra_pnginfo")]
    silent = [key for key in silent if len(dict(inputs)[key]) < 2 or len(dict(inputs)[key][1].get("tooltip", "")) < 15]
    assert silent == []
    assert all(tooltip and len(tooltip) >= 15 for tooltip in info["output_tooltips"])
    page = (repository / "js" / "docs" / f"{PREFIX}{name}.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    for key in NAMES[name][1]:
        assert f"`{key}`" in page, f"the help page does not mention {key}"


def test_the_demo_model_samples_with_stock_nodes(run_graph):
    prompt = {
        "model": call("LoadDemoModel"),
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "a photo of a red cat"}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": ""}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["model", 2]}},
        "tiled": {
            "class_type": "VAEDecodeTiled",
            "inputs": {"samples": ["sample", 0], "vae": ["model", 2], "tile_size": 128, "overlap": 32}
            | {"temporal_size": 64, "temporal_overlap": 8},
        },
    }
    ksampler = {"seed": 7, "steps": 8, "cfg": 4.0, "scheduler": "normal", "denoise": 1.0, "model": ["model", 0]}
    ksampler |= {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    pictures = {}
    for sampler in ("dpmpp_2m", "ddim"):
        prompt["sample"] = {"class_type": "KSampler", "inputs": {**ksampler, "sampler_name": sampler}}
        run = run_graph(prompt, keep={"picture": ("decode", 0), "tiled": ("tiled", 0)})
        assert run.status == "success", run.error
        pictures[sampler] = run.kept["picture"]
        assert run.kept["picture"].shape == run.kept["tiled"].shape == (1, 128, 128, 3)
        # Tiles cut the receptive field, so they differ near their seams.
        assert (run.kept["tiled"] - run.kept["picture"]).abs().mean() < 0.02
        assert run.kept["picture"].std() > 0.02
    # Two solvers of one equation from one noise: alike, but not the same.
    assert 0 < (pictures["ddim"] - pictures["dpmpp_2m"]).abs().mean() < 0.15


def test_the_demo_model_can_be_loaded_anew(run_graph):
    """ComfyUI asks loaders for this when it wants a second, untouched copy of the weights."""
    run = run_graph(
        {"model": call("LoadDemoModel")}, keep={"model": ("model", 0), "clip": ("model", 1), "vae": ("model", 2)}
    )
    assert run.status == "success", run.error
    for patcher in (run.kept["model"], run.kept["clip"].patcher, run.kept["vae"].patcher):
        copy = patcher.clone(force_deepcopy=True)
        assert copy.model is not patcher.model
        mine, theirs = patcher.model.state_dict(), copy.model.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_demo_images_are_pictures_with_their_masks(run_graph):
    graph = {"images": call("DemoImages", concept="castle", count=3, background="snow", seed=5)}
    keep = {"images": ("images", 0), "masks": ("images", 1), "word": ("images", 2)}
    first = run_graph(graph, keep=keep)
    assert first.status == "success", first.error
    images, masks = first.kept["images"], first.kept["masks"]
    assert images.shape == (3, 128, 128, 3)
    assert masks.shape == (3, 128, 128)
    assert first.kept["word"] == "house"
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    outside = images[masks == 0]
    assert outside.mean() > 0.75, "snow is bright"
    graph["images"]["inputs"]["seed"] = 6
    assert not torch.equal(run_graph(graph, keep=keep).kept["images"], images)


def test_prompts_add_up_and_appear_once(run_graph, comfyui):
    (comfyui.base / "input" / "mine.txt").write_text("a {} in a jar\na {} on a shelf  # new\n", encoding="utf-8")
    own = "a {} on a shelf\n# a comment\na {} under a bridge"
    run = run_graph(
        {"p": call("ContextPrompts", built_in_set="none", own_prompts=own, file="mine.txt")}, keep={"prompts": ("p", 0)}
    )
    assert run.status == "success", run.error
    assert run.kept["prompts"].prompts == ("a {} on a shelf", "a {} under a bridge", "a {} in a jar")
    both = run_graph(
        {"p": call("ContextPrompts", built_in_set="inanimate", own_prompts=own, file="none")},
        keep={"prompts": ("p", 0)},
    )
    assert len(both.kept["prompts"]) == 102


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"own_prompts": "a {} in a jar\n\na jar\na {} and a {}"}, ["line 3", "line 4"]),
        ({"own_prompts": "   "}, ["no prompts"]),
    ],
)
def test_wrong_prompts_are_reported_with_their_lines(run_graph, inputs, said):
    graph = {"p": call("ContextPrompts", built_in_set="none", file="none", **inputs)}
    run = run_graph(graph, keep={"prompts": ("p", 0)})
    assert run.status == "invalid"
    (details,) = {one["details"].partition(" - ")[2] for one in run.error["node_errors"]["p"]["errors"]}
    assert all(words in details for words in said), details


def test_an_edited_prompt_file_counts_as_new(run_graph, comfyui):
    path = comfyui.base / "input" / "edited.txt"
    path.write_text("a {} in a jar", encoding="utf-8")
    graph = {"p": call("ContextPrompts", built_in_set="none", own_prompts="", file="edited.txt")}
    assert run_graph(graph, keep={"p": ("p", 0)}).executed == ["p"]
    assert run_graph(graph, keep={"p": ("p", 0)}).executed == []
    path.write_text("a {} in a bottle", encoding="utf-8")
    again = run_graph(graph, keep={"p": ("p", 0)})
    assert again.executed == ["p"]
    assert again.kept["p"].prompts == ("a {} in a bottle",)


def core(**inputs: object) -> dict:
    defaults = {"weights": "custom", "embedding_weight": 0.25, "attention_weight": 2.0, "rescale_mode": "spherical"}
    defaults |= {"embedding_axis": "official", "attention_mode": "paper", "attention_batch": 2}
    return call("CoReRegularizer", prompts=["p", 0], **defaults | inputs)


class Encoder:
    def __init__(self, width):
        self.width = width


class Model:
    """As much of a model as choosing weights looks at."""

    def __init__(self, width):
        self.text_encoders = {"clip_l": Encoder(width)}
        self.schedule = SimpleNamespace(prediction_type="v_prediction")


def test_regularizers_are_recipes_that_add_up(run_graph):
    prompts = call("ContextPrompts", built_in_set="none", own_prompts="a {} in a jar", file="none")
    graph = {"p": prompts, "a": core(), "b": core(weights="auto (for this model)", regularizer=["a", 0])}
    graph["c"] = core(weights="paper")
    run = run_graph(graph, keep={"b": ("b", 0), "c": ("c", 0)})
    assert run.status == "success", run.error
    (custom, auto), (paper,) = (run.kept[name].make(Model(768)) for name in "bc")
    assert run.kept["b"].norm_mode == "spherical"
    assert (custom.embedding_weight, custom.attention_weight) == (0.25, 2.0)
    assert (custom.axis, custom.attention_mode, custom.attention_batch) == ("official", "paper", 2)
    assert custom.prompts == ("a {} in a jar",)
    assert (auto.embedding_weight, auto.attention_weight) == (paper.embedding_weight, paper.attention_weight)
    assert (paper.embedding_weight, paper.attention_weight) == (1.5e-4, 0.05)
    _, narrow = run.kept["b"].make(Model(128))
    assert narrow.embedding_weight > auto.embedding_weight
    # Two trainings must not share a regularizer: it remembers things about the one it is in.
    assert run.kept["c"].make(Model(768))[0] is not paper


def test_the_readme_of_a_node_speaks_of_nothing_that_is_gone(comfyui, repository):
    for page in (repository / "js" / "docs").glob("*.md"):
        named = set(re.findall(rf"{PREFIX}\w+", page.read_text(encoding="utf-8")))
        assert named <= set(comfyui.nodes.NODE_CLASS_MAPPINGS)
