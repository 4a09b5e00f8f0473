"""MODEL, CLIP, VAE and CONCEPT that do not fit are found before any work, by every node, in words that name both."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from messages import LONGEST, own_length

from .hostile_graphs import SOURCE, source_node

PREFIX = "ContextualInversion"
FOLDER_LOADER = "LoadImageDataSetFromFolder"


def call(name: str, /, **inputs: Any) -> dict:
    return {"class_type": PREFIX + name, "inputs": inputs}


@pytest.fixture(scope="module")
def families(comfyui):
    """Random models of two families: sockets of each, and a concept for each."""
    from contextual_inversion.core.concept import Concept

    from .random_models import POOLED, build

    widths = {"sd1": {"clip_l": 32}, "sdxl": {"clip_l": 32, "clip_g": POOLED}}
    found = {}
    for kind, encoders in widths.items():
        _, sockets = build(kind)
        vectors = {name: torch.randn(1, width) for name, width in encoders.items()}
        found[kind] = (sockets, Concept("ptn", "cat", vectors, provenance={}))
    return found


@pytest.fixture
def ask(comfyui, run_graph):
    """Runs one node on values: `ask(name, sockets={input: value}, **literals)`."""
    store: dict = {}
    comfyui.nodes.NODE_CLASS_MAPPINGS[SOURCE] = source_node(store)

    def run(name: str, sockets: dict[str, Any], /, **literals: Any) -> Any:
        store.clear()
        store.update(sockets)
        links = {key: [f"source-{key}", 0] for key in sockets}
        prompt = {f"source-{key}": {"class_type": SOURCE, "inputs": {"key": key}} for key in sockets}
        return run_graph({**prompt, "node": call(name, **literals, **links)}, keep={"out": ("node", 0)})

    yield run
    del comfyui.nodes.NODE_CLASS_MAPPINGS[SOURCE]


IMAGE = torch.full((1, 64, 64, 3), 0.5)
TRAINING = {
    "recipe": "auto (for this model)",
    "steps": 1,
    "learning_rate": 0.01,
    "batch": 1,
    "seed": 0,
    "preview_every": 0,
    "preview_prompt": "a {}",
    "continue_interrupted": False,
}
EVERY: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "TrainConcept": (("vae", "images"), {**TRAINING, "class_word": "cat", "name": "ptn", "vectors": 1,
                                         "train": "textual inversion"}),
    "RefineConcept": (("vae", "images", "concept"), {**TRAINING, "train": "LoRA", "rank": 2}),
    "OptimizeForPrompt": (("vae", "concept"), {"prompt": "a {}", "steps": 1, "learning_rate": 0.01, "batch": 1,
                                               "latents": "pure noise", "seed": 0, "width": 64, "height": 64}),
    "ApplyConcept": (("concept",), {"strength_model": 1.0, "strength_clip": 1.0, "name": ""}),
    "DualPath": (("concept",), {"prompt": "a <ptn>", "alpha": 0.5, "modulated_path": "soft", "start_percent": 0.0,
                                "end_percent": 1.0}),
    "AttendImage": (("vae", "image"), {"prompt": "a cat", "timesteps": "500", "seed": 0}),
    "DiagnoseConcept": (("concept",), {"prompts": "places", "own_prompts": "", "class_word": "", "most_prompts": 1,
                                       "images": 0, "steps": 1, "guidance": 1.0, "width": 64, "height": 64,
                                       "seed": 0}),
}  # fmt: skip
"""Nodes with a MODEL and a CLIP: their other sockets and settings."""


def sockets_of(name: str, own: Any, concept: Any) -> dict[str, Any]:
    others = {"vae": own.vae, "images": IMAGE, "image": IMAGE, "concept": concept}
    return {"model": own.model, "clip": own.clip, **{key: others[key] for key in EVERY[name][0]}}


def refusal(run: Any) -> str:
    """The words of a refusal on purpose."""
    assert run.status == "error"
    assert run.error["exception_type"].endswith(("ValueError", "ConceptFileError")), run.error["exception_message"]
    message = run.error["exception_message"].strip()
    assert own_length(message) < LONGEST
    return message


@pytest.mark.parametrize("name", EVERY)
def test_a_clip_of_another_family_is_found_by_every_node(ask, families, name):
    (sd1, word), (sdxl, _) = families["sd1"], families["sdxl"]
    message = refusal(ask(name, {**sockets_of(name, sd1, word), "clip": sdxl.clip}, **EVERY[name][1]))
    assert "clip_l 32, clip_g 48" in message
    assert "SD15 takes 32" in message
    assert "checkpoint" in message


@pytest.mark.parametrize("name", [name for name in EVERY if "concept" in EVERY[name][0]])
def test_a_word_of_another_family_is_found_by_every_node(ask, families, name):
    (_, word), (sdxl, _) = families["sd1"], families["sdxl"]
    message = refusal(ask(name, sockets_of(name, sdxl, word), **EVERY[name][1]))
    assert "'ptn' has no vectors for clip_g" in message


@pytest.mark.parametrize("name", [name for name in EVERY if "concept" in EVERY[name][0]])
def test_a_word_for_other_layers_is_found_by_every_node(ask, families, name):
    sd1, word = families["sd1"]
    layered = replace(word, layer_vectors={"clip_l": torch.ones(3, 1, 32)})
    assert "3 cross-attention layers" in refusal(ask(name, sockets_of(name, sd1, layered), **EVERY[name][1]))


@pytest.mark.parametrize("missing", ["model", "clip", "vae", "concept"])
@pytest.mark.parametrize("name", EVERY)
def test_what_a_checkpoint_lacks_is_named(ask, families, name, missing):
    own, word = families["sd1"]
    given = sockets_of(name, own, word)
    if missing not in given:
        return
    message = refusal(ask(name, {**given, missing: None}, **EVERY[name][1]))
    assert message.startswith(f"{missing} is empty")
    assert "connect" in message


def other_model(own: Any, kind: str) -> Any:
    """The MODEL of a family that draws nothing from text, on the UNet of `own`."""
    import comfy.model_base

    model = own.model.clone()
    base = model.model
    if kind == "refiner":
        base.__class__ = comfy.model_base.SDXLRefiner
    elif kind == "upscaler":
        base.__class__ = comfy.model_base.SD_X4Upscaler
    else:
        base.diffusion_model.in_channels = {"inpainting": 9, "InstructPix2Pix": 8}[kind]
    return model


@pytest.mark.parametrize(
    ("kind", "said"),
    [("inpainting", "inpainting"), ("InstructPix2Pix", "InstructPix2Pix"), ("upscaler", "x4 upscaler"),
     ("refiner", "SDXL refiner")],
)  # fmt: skip
def test_a_model_of_another_purpose_is_named(families, kind, said):
    from contextual_inversion.nodes.comfy.fitting import require_trainable_model

    own, _ = families["sdxl" if kind == "refiner" else "sd1"]
    base, unet = own.model.model, own.model.model.diffusion_model
    before, channels = type(base), unet.in_channels
    try:
        with pytest.raises(ValueError, match=said) as caught:
            require_trainable_model(other_model(own, kind), own.clip, own.vae)
    finally:
        base.__class__, unet.in_channels = before, channels
    assert "perhaps" not in str(caught.value)
    require_trainable_model(own.model, own.clip, own.vae)


def test_a_model_without_cross_attention_is_refused_before_it_is_sampled(ask, families):
    from types import SimpleNamespace

    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)), model_options={}, clone=None)
    message = refusal(ask("RecordAttention", {"model": other}, step_bins=2, cells=8))
    assert "not a Stable Diffusion UNet" in message


def test_a_clip_whose_weights_were_never_loaded_is_said_and_taken(ask, families, caplog):
    from contextual_inversion.nodes.comfy.fitting import never_loaded

    own, word = families["sd1"]
    norms = [part for part in own.clip.cond_stage_model.modules() if isinstance(part, torch.nn.LayerNorm)]
    assert "never loaded" in never_loaded(own.clip)  # random weights: no file was read
    with caplog.at_level(logging.WARNING):
        run = ask("ApplyConcept", sockets_of("ApplyConcept", own, word), **EVERY["ApplyConcept"][1])
    assert run.status == "success"
    assert any("never loaded" in data["text"] for data in run.events("progress_text"))
    assert any("never loaded" in record.getMessage() for record in caplog.records)
    with torch.inference_mode():
        norms[-1].weight[3] += 0.01
    try:
        assert never_loaded(own.clip) == ""
    finally:
        with torch.inference_mode():
            norms[-1].weight[3] = 1.0


def test_a_vae_without_weights_is_named(ask, families):
    from types import SimpleNamespace

    own, word = families["sd1"]
    empty = SimpleNamespace(first_stage_model=None, encode=None, decode=None)
    given = {**sockets_of("AttendImage", own, word), "vae": empty}
    assert refusal(ask("AttendImage", given, **EVERY["AttendImage"][1])).startswith("vae has no weights")


def test_a_text_encoder_stored_in_eight_bits_is_read_as_stock_reads_it(families, comfyui):
    import comfy.sd
    import comfy.supported_models_base

    from contextual_inversion.core.models.text import encode_prompts
    from contextual_inversion.nodes.comfy.model import ComfyModel

    from .random_models import SHAPES, _text_config

    own, _ = families["sd1"]
    options = {"clip_l_model_config": _text_config(32, "clip_l"), "dtype": torch.float8_e4m3fn}
    with torch.inference_mode():
        target = comfy.supported_models_base.ClipTarget(*SHAPES["sd1"].target)
        clip = comfy.sd.CLIP(target, model_options=options, disable_dynamic=True)
        weights = own.clip.cond_stage_model.clip_l.transformer.state_dict()
        clip.cond_stage_model.clip_l.transformer.load_state_dict(weights)
        table = clip.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight
        assert table.dtype is torch.float8_e4m3fn
        expected = clip.encode_from_tokens(clip.tokenize("a photo of a cat"))
        model = ComfyModel(own.model, clip, own.vae)
        found = encode_prompts(model, ["a photo of a cat"])["clip_l"].tokens
        word = encode_prompts(model, ["a photo of a {}"], vectors={"clip_l": torch.randn(1, 32)})["clip_l"].tokens
    torch.testing.assert_close(found, expected)
    assert torch.isfinite(word).all()


# Numbers and text


def inputs_of(comfyui, kind: str) -> list[tuple[str, str]]:
    """(class, input) of every input of a kind in our nodes."""
    found = []
    for name, node in sorted(comfyui.nodes.NODE_CLASS_MAPPINGS.items()):
        if name.startswith(PREFIX) and hasattr(node, "define_schema"):
            found += [(name, one.id) for one in node.define_schema().inputs if one.io_type == kind]
    return found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["FLOAT", "INT"])
def test_a_number_that_is_none_is_refused_by_name_in_every_node(comfyui, kind, value):
    from contextual_inversion.nodes.schema.checking import checked_value

    asked = inputs_of(comfyui, kind)
    assert len(asked) > 20
    for name, number in asked:
        node = comfyui.nodes.NODE_CLASS_MAPPINGS[name]
        one = next(one for one in node.define_schema().inputs if one.id == number)
        with pytest.raises(ValueError, match=f"^{number} is (nan|inf|-inf), which is no finite number"):
            checked_value(one, value)
        for beyond in (one.min - 1, one.max + 1):
            with pytest.raises(ValueError, match=f"^{number} is .*outside of"):
                checked_value(one, beyond)
        if one.default is not None:
            assert checked_value(one, one.default) == one.default


def test_every_node_of_ours_asks_its_inputs(comfyui):
    ours = [node for name, node in comfyui.nodes.NODE_CLASS_MAPPINGS.items() if name.startswith(PREFIX)]
    asking = [node for node in ours if hasattr(node, "unchecked")]
    assert len(asking) >= 25
    assert {node.__name__ for node in ours if hasattr(node, "define_schema")} == {node.__name__ for node in asking}


def test_a_number_along_a_link_is_held_to_the_steps_of_its_input(comfyui):
    from contextual_inversion.nodes.schema.checking import checked_value

    node = comfyui.nodes.NODE_CLASS_MAPPINGS[f"{PREFIX}OptimizeForPrompt"]
    width = next(one for one in node.define_schema().inputs if one.id == "width")
    assert checked_value(width, 72) == 72
    with pytest.raises(ValueError, match=r"^width is 65 and no multiple of 8; give it 64 or 72"):
        checked_value(width, 65)


# Lists


def folder_of(comfyui, sizes: list[tuple[int, int]]) -> str:
    """A folder of pictures of these sizes in ComfyUI's input."""
    from PIL import Image

    folder = comfyui.base / "input" / "of_sizes"
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (40 * number + 20, 90, 200 - 40 * number)).save(folder / f"{number}.png")
    return folder.name


@pytest.mark.parametrize("node", ["TrainConcept", "RefineConcept"])
def test_a_folder_of_pictures_is_one_training_of_them_all(comfyui, run_graph, node):
    name = folder_of(comfyui, [(128, 128), (200, 150), (96, 130)])
    model = {"model": ["m", 0], "clip": ["m", 1], "vae": ["m", 2]}
    pictures = {"images": ["f", 0], "resolution": 64}
    trained = {**model, **TRAINING, "class_word": "cat", "name": "ptn", "vectors": 1, "train": "textual inversion"}
    graph = {
        "m": call("LoadDemoModel"),
        "f": {"class_type": FOLDER_LOADER, "inputs": {"folder": name}},
        "t": call("TrainConcept", **trained, **pictures, keep_latents=True),
    }
    last = "t"
    if node == "RefineConcept":
        graph["r"] = call("RefineConcept", **model, **TRAINING, **pictures, train="LoRA", rank=2, concept=["t", 0],
                          gradient_checkpointing=True)  # fmt: skip
        last = "r"
    begun: list[Any] = []
    run = run_graph(graph, keep={"concept": (last, 0)}, on_event=lambda event, data: begun.append((event, data)))
    assert run.status == "success", run.error
    concept = run.kept["concept"]
    assert len(concept.latents) == 3
    assert concept.provenance["settings"]["resolution"] == 64
    views = [data for event, data in begun if event == "contextual_inversion.training" and data["node_id"] == last]
    assert len({view["node_id"] for view in views if view.get("steps")}) == 1
    # What is one training in a list is one in a batch: the same pictures, the same word.
    assert len({len(values) for values in concept.vectors.values()}) == 1


def test_a_list_and_a_batch_of_the_same_pictures_teach_the_same_word(ask, comfyui):
    from contextual_inversion.nodes.comfy import demo_model

    from .hostile_graphs import Many

    torch.manual_seed(0)
    batch = torch.rand(3, 64, 64, 3)
    with torch.inference_mode():
        own = {"model": demo_model.load_model_patcher(), "clip": demo_model.load_clip(), "vae": demo_model.load_vae()}
    settings = {**EVERY["TrainConcept"][1], "resolution": 64, "batch": 3}
    masks = torch.ones(3, 64, 64).tril()
    learned = []
    for images, shown in (
        (batch, masks),
        (Many(batch.split(1)), Many(masks.split(1))),
        (Many(batch.split([1, 2])), masks),
    ):
        run = ask("TrainConcept", {**own, "images": images, "masks": shown}, **settings)
        assert run.status == "success", run.error
        learned.append(run.kept["out"].vectors["clip_l"])
    assert torch.equal(learned[0], learned[1])
    assert torch.equal(learned[0], learned[2])


def test_pictures_of_any_sizes_are_evaluated_together(ask):
    from .hostile_graphs import Many

    pictures = Many([torch.rand(1, 64, 80, 3), torch.rand(2, 96, 64, 4), torch.rand(1, 70, 70, 1)])
    settings = {"prompts": "a {}\na red {}", "class_word": "cat", "clip": "bundled", "dino": "none",
                "background_fill": 0.0, "batch": 2}  # fmt: skip
    run = ask("EvaluateConcept", {"images": pictures, "references": Many(pictures[:2])}, **settings)
    assert run.status == "success", run.error
    assert "4 pictures" in run.kept["out"]


def test_several_names_for_one_training_are_refused(ask, families):
    from .hostile_graphs import Many

    own, word = families["sd1"]
    settings = {key: value for key, value in EVERY["TrainConcept"][1].items() if key != "name"}
    run = ask("TrainConcept", {**sockets_of("TrainConcept", own, word), "name": Many(["one", "two"])}, **settings)
    assert "name was given 2 values" in refusal(run)


# Cancel


@pytest.mark.parametrize("work", ["predict", "to_latents", "to_images", "encode"])
def test_cancel_is_heard_at_every_pass_of_a_model(families, work):
    import comfy.model_management as management

    from contextual_inversion.core.models.protocol import ImageSize
    from contextual_inversion.core.models.text import encode_prompts
    from contextual_inversion.nodes.comfy.model import ComfyModel

    own, _ = families["sd1"]
    model = ComfyModel(own.model, own.clip, own.vae)
    with torch.inference_mode():
        given = model.conditioning(encode_prompts(model, ["a cat"]), ImageSize(64, 64))
        latents = torch.zeros(1, 4, 8, 8)
        passes = {
            "predict": lambda: model.predict(latents, torch.tensor([5]), given),
            "to_latents": lambda: model.to_latents(torch.zeros(1, 3, 64, 64)),
            "to_images": lambda: model.to_images(latents),
            "encode": lambda: encode_prompts(model, ["a cat"]),
        }
        passes[work]()
        management.interrupt_current_processing()
        with pytest.raises(management.InterruptProcessingException):
            passes[work]()
        passes[work]()  # it is heard once


def test_what_a_node_that_takes_lists_asks_beforehand_gets_single_values(comfyui):
    import inspect

    from comfy_api.latest import io

    from contextual_inversion.nodes.schema.checking import checked

    class Takes(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Takes", inputs=[io.String.Input("name")], outputs=[], is_input_list=True)

        @classmethod
        def validate_inputs(cls, name: str = "x") -> bool | str:
            return True if name == "fine" else f"not {name}"

        @classmethod
        def execute(cls, name: str) -> str:
            return name

    node = checked(checked(Takes))
    assert node is Takes
    assert inspect.getfullargspec(node.validate_inputs).args == ["cls", "name"]  # ComfyUI looks here
    assert node.validate_inputs(name=["fine"]) is True
    assert node.validate_inputs(name="odd") == "not odd"
    assert node.validate_inputs(name=(None,)) == "not None"  # what ComfyUI says of a link
    assert node.execute(name=["fine", "fine"]) == "fine"
    assert node.execute("placed") == "placed"
