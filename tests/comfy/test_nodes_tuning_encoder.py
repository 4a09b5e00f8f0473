"""One picture, one word, in a real ComfyUI: pretrain, load, predict, tune, and use the result with stock nodes."""

import json
import sys

import pytest
import torch

from contextual_inversion.core.models.tiny.config import LATENT_CHANNELS

PREFIX = "ContextualInversion"
FILE = "small.safetensors"


def call(name: str, /, **inputs: object) -> dict:
    """The prompt entry of one of this pack's nodes."""
    return {"class_type": PREFIX + name, "inputs": inputs}


def pack(name: str):
    """A module of this pack under the name that ComfyUI gave it."""
    suffix = f".{name}"
    return next(module for key, module in sys.modules.items() if key.endswith(suffix) and "custom_nodes" in key)


@pytest.fixture(scope="module")
def encoder_file(comfyui):
    """A tuning-encoder for the bundled model that has learned nothing, but whose LoRA is not zero."""
    with torch.inference_mode(False):
        pretraining = pack("core.training.one_picture.pretraining")
        observer = pack("core.training.one_picture.observer")
        images = pack("nodes.comfy.clip_vision").image_encoder_of(None)
        demo = pack("nodes.comfy.demo_model")
        model = pack("nodes.comfy.model").ComfyModel(demo.load_model_patcher(), demo.load_clip(), demo.load_vae())
        recipes = pack("core.training.one_picture.recipes")
        settings = pretraining.EncoderPretrainSettings(**{**recipes.NARROW, "timesteps": (500,)})
        with model.session():
            size = pack("core.models.protocol").ImageSize(128, 128)
            maps = observer.Observer(model, size).channels()
            known = pack("core.models.vocabulary").known_words(model)
            encoder = pretraining.new_encoder(model, images, settings, maps, known)
        with torch.no_grad():
            for head in encoder.hypernetwork.b_heads:
                head.weight.normal_(std=0.01, generator=torch.Generator().manual_seed(1))
        folder = comfyui.base / "models" / "tuning_encoders"
        folder.mkdir(parents=True, exist_ok=True)
        pack("core.files.tuning_encoder").save_tuning_encoder(
            encoder, folder, FILE.removesuffix(".safetensors"), if_exists="replace"
        )


def graph(**changes: object) -> dict:
    """Model, one picture, a loaded encoder, a prediction and a short tuning of it."""
    common = {"tuning_encoder": ["encoder", 0], "image": ["images", 0], "model": ["model", 0], "clip": ["model", 1]}
    common |= {"vae": ["model", 2], "name": "mine", "class_word": ""}
    rates = {"lora_learning_rate": 0.01, "vector_learning_rate": 0.01, "contrastive_weight": 0.01, "norm_weight": 0.01}
    tuning = {"steps": 2, "batch": 2, "tuned": "lora and vectors", **rates, "dual_path": True, "alpha": 0.5, "seed": 0}
    tuning |= {"more_steps": False, "gradient_checkpointing": False, "concept": ["predict", 0], **changes}
    return {
        "model": call("LoadDemoModel"),
        "images": call("DemoImages", concept="castle", count=1, background="grass", seed=0),
        "encoder": call("LoadTuningEncoder", file=FILE),
        "predict": call("PredictConcept", **common),
        "tune": call("TunePredictedConcept", **common, **tuning),
    }


KEEP = {"predicted": ("predict", 0), "hard": ("predict", 1), "tuned": ("tune", 0), "loss": ("tune", 1)}


def test_a_picture_becomes_a_word_and_a_lora(run_graph, encoder_file):
    run = run_graph(graph(), keep=KEEP)
    assert run.status == "success", run.error
    predicted, tuned = run.kept["predicted"], run.kept["tuned"]
    assert predicted.name == tuned.name == "mine"
    assert predicted.vectors["clip_l"].shape == (1, 128)
    assert len(predicted.lora) == 3 * 56
    assert run.kept["hard"] == predicted.hard_token == predicted.class_word
    assert not torch.equal(predicted.vectors["clip_l"], tuned.vectors["clip_l"])
    assert len(run.kept["loss"]["loss"]) == 2
    (line,) = run.ui["predict"]["text"]
    assert line.startswith(f"predicted <mine>, nearest word {predicted.hard_token}, ")
    assert line.endswith(" GB")
    assert {view["node_id"] for view in run.events("contextual_inversion.training")} == {"tune"}
    assert run_graph(graph(), keep=KEEP).executed == []


def test_the_prediction_is_used_by_stock_nodes_and_its_bundle_by_the_stock_lora_loader(run_graph, encoder_file):
    """The same picture with the concept in memory as with its file in ComfyUI's own LoRA loader and embedding."""
    prompt = {k: v for k, v in graph().items() if k != "tune"}
    sampling = {"seed": 1, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    empty = {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}}
    prompt |= {"latent": empty, "save": call("SaveConcept", concept=["predict", 0], **saving("one-picture"))}

    def drawn(name: str, model: list, clip: list, text: object) -> dict:
        encode = {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": text}}
        none = {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}}
        sampler = {"model": model, "positive": [f"{name}-text", 0], "negative": [f"{name}-none", 0]}
        sampler |= {"latent_image": ["latent", 0], **sampling}
        return {
            f"{name}-text": encode,
            f"{name}-none": none,
            name: {"class_type": "KSampler", "inputs": sampler},
        }

    prompt |= {
        "apply": call("ApplyConcept", model=["model", 0], clip=["model", 1], concept=["predict", 0], **APPLY),
        **drawn("memory", ["apply", 0], ["apply", 1], "a photo of a <mine>"),
    }
    first = run_graph(prompt, keep={"memory": ("memory", 0), "text": ("save", 0)})
    assert first.status == "success", first.error
    files = pack("nodes.comfy.folders")
    bundle = next(files.first_folder(files.BUNDLES).rglob("one-picture*.safetensors"))
    loras = files.first_folder("loras")
    (loras / "one-picture.safetensors").write_bytes(bundle.read_bytes())
    stock = {"lora_name": "one-picture.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    prompt |= {
        "lora": {"class_type": "LoraLoader", "inputs": {"model": ["model", 0], "clip": ["model", 1], **stock}},
        **drawn("stock", ["lora", 0], ["lora", 1], f"a photo of a {first.kept['text']}"),
        **drawn("plain", ["model", 0], ["model", 1], f"a photo of a {first.kept['text']}"),
    }
    keep = {"memory": ("memory", 0), "stock": ("stock", 0), "plain": ("plain", 0)}
    second = run_graph(prompt, keep=keep)
    assert second.status == "success", second.error
    memory, stock_loader, plain = (second.kept[name]["samples"] for name in keep)
    torch.testing.assert_close(stock_loader, memory, rtol=1e-3, atol=1e-3)
    assert (plain - memory).abs().max() > 0.01


APPLY = {"strength_model": 1.0, "strength_clip": 1.0, "name": ""}


def saving(name: str) -> dict:
    """SaveConcept's inputs."""
    if_taken = pack("nodes.comfy.saving").REPLACE
    return {"name": name, "if_taken": if_taken, "embedding_file": True, "half_precision": False}


def test_more_than_twelve_steps_have_to_be_meant(run_graph, encoder_file):
    run = run_graph(graph(steps=13), keep=KEEP)
    assert run.status == "error"
    assert "12 steps at most, not 13" in run.error["exception_message"]


def test_an_encoder_of_another_model_is_refused_by_both_names(run_graph, encoder_file, monkeypatch):
    nodes = pack("nodes.tuning_encoders")
    load = nodes.load_tuning_encoder

    def changed(path):
        from dataclasses import replace

        encoder = load(path)
        encoder.identity = replace(encoder.identity, model="another model", unet="0123456789abcdef")
        return encoder

    monkeypatch.setattr(nodes, "load_tuning_encoder", changed)
    run = run_graph(graph(), keep=KEEP)
    assert run.status == "error"
    message = run.error["exception_message"]
    assert "another model (UNet 0123456789abcdef" in message
    assert "the UNet differs" in message


def pretraining() -> dict:
    """PretrainTuningEncoder's entry, with few and small steps."""
    given = {"world_pictures": 3, "size": "auto (for this model)", "rank": 2, "steps": 2, "batch": 2, "seed": 0}
    given |= {"learning_rate": 0.0, "contrastive_weight": 0.01, "name": "from-graph", "continue_interrupted": True}
    sockets = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2]}
    return call("PretrainTuningEncoder", **sockets, **given)


def test_a_small_pretraining_writes_a_file_that_predicts(run_graph, comfyui):
    prompt = graph()
    prompt["encoder"] = pretraining()
    run = run_graph(prompt, keep={"concept": ("predict", 0), "loss": ("encoder", 1), "file": ("encoder", 2)})
    assert run.status == "success", run.error
    assert len(run.kept["loss"]["loss"]) == 2
    assert (comfyui.base / "models" / "tuning_encoders" / run.kept["file"]).is_file()
    assert {value.shape[0] for key, value in run.kept["concept"].lora.items() if key.endswith("lora_down.weight")} == {
        2
    }


def test_a_cancelled_pretraining_goes_on_from_its_checkpoint(run_graph, comfyui, monkeypatch):
    import comfy.model_management

    reporter = pack("nodes.page.reporting").Reporter
    reports, started, cancel = reporter.__call__, [], True

    def report(self: object, event: object) -> None:
        reports(self, event)
        if hasattr(event, "first_step"):
            started.append(event.first_step)
        if cancel and type(event).__name__ == "CheckpointSaved":
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(reporter, "__call__", report)
    prompt = {"model": call("LoadDemoModel"), "encoder": pretraining()}
    keep = {"loss": ("encoder", 1)}
    kept = comfyui.base / "user" / "contextual_inversion" / "checkpoints"
    stopped = run_graph(prompt, keep=keep)
    assert stopped.status == "interrupted", stopped.error
    assert len(list(kept.glob("tuning-encoder-*/*.safetensors"))) == 1
    cancel = False
    run = run_graph(prompt, keep=keep)
    assert run.status == "success", run.error
    assert started == [0, 2]
    assert len(run.kept["loss"]["loss"]) == 2
    assert any("pretrained in 2 steps" in data["text"] for data in run.events("progress_text"))
    assert run.events("contextual_inversion.training")[-1]["ended"]
    assert list(kept.glob("tuning-encoder-*")) == []


def test_a_real_model_is_not_taught_the_demo_models_world(run_graph, comfyui, monkeypatch):
    monkeypatch.setattr(pack("nodes.tuning_encoders"), "native_resolution", lambda model: 512)
    encoder = pretraining()
    encoder["inputs"]["seed"] = 7  # no other run's, so that nothing comes from the cache
    run = run_graph({"model": call("LoadDemoModel"), "encoder": encoder}, keep={"loss": ("encoder", 1)})
    assert run.status == "error"
    assert "Connect images" in run.error["exception_message"]


def test_a_disk_that_is_full_in_the_end_costs_no_step(run_graph, comfyui, monkeypatch):
    """What was trained waits until it is in a file."""
    nodes, reporter, started = pack("nodes.tuning_encoders"), pack("nodes.page.reporting").Reporter, []
    reports, save = reporter.__call__, nodes.save_tuning_encoder

    def report(self: object, event: object) -> None:
        reports(self, event)
        started.extend([event.first_step] if hasattr(event, "first_step") else [])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reporter, "__call__", report)
    monkeypatch.setattr(nodes, "save_tuning_encoder", full)
    prompt = {"model": call("LoadDemoModel"), "encoder": pretraining()}
    failed = run_graph(prompt, keep={"loss": ("encoder", 1)})
    assert "No space left" in failed.error["exception_message"]
    monkeypatch.setattr(nodes, "save_tuning_encoder", save)
    run = run_graph(prompt, keep={"loss": ("encoder", 1)})
    assert run.status == "success", run.error
    assert started == [0, 2]


def test_a_lora_on_the_model_makes_it_another_pretraining(run_graph, comfyui, monkeypatch):
    """What was cancelled with one LoRA is not gone on with under another."""
    work, folders = pack("nodes.tuning_encoders"), []
    resumable = work.Resumable

    def seen(*arguments: object) -> object:
        folders.append(resumable(*arguments).folder)
        return resumable(*arguments)

    monkeypatch.setattr(work, "Resumable", seen)
    files = pack("nodes.comfy.folders")
    from safetensors.torch import save_file

    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    weight = pack("nodes.comfy.demo_model").load_model_patcher().model.diffusion_model.middle_block[1]
    width = weight.transformer_blocks[0].attn1.to_q.weight.shape
    down, up = torch.ones(1, width[1]), torch.ones(width[0], 1)
    file = files.first_folder("loras") / "ones.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, file)
    for strength in (0.01, 0.02):
        encoder = pretraining()
        encoder["inputs"] |= {"model": ["lora", 0], "steps": 1}
        lora = {"model": ["model", 0], "lora_name": "ones.safetensors", "strength_model": strength}
        prompt = {"model": call("LoadDemoModel"), "encoder": encoder}
        prompt["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
        run = run_graph(prompt, keep={"loss": ("encoder", 1)})
        assert run.status == "success", run.error
    assert folders[0] != folders[1]


def test_a_clip_vision_model_may_push_the_unet_out_of_a_small_memory(comfyui, monkeypatch):
    """ComfyUI makes room by unloading, which also takes a LoRA off; the next UNet pass has both again."""
    import comfy.clip_vision
    import comfy.model_management as management

    numbers = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4}
    numbers |= {"image_size": 32, "patch_size": 8, "num_channels": 3, "projection_dim": 32, "layer_norm_eps": 1e-5}
    demo, protocol = pack("nodes.comfy.demo_model"), pack("core.models.protocol")
    with torch.inference_mode():
        vision = comfy.clip_vision.ClipVisionModel(
            {**numbers, "hidden_act": "quick_gelu", "model_type": "clip_vision_model"}
        )
        for value in vision.model.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
        patcher = demo.load_model_patcher().clone()
        key = "diffusion_model.input_blocks.0.0.weight"
        weight = patcher.model.state_dict()[key]
        patcher.add_patches({key: (torch.full_like(weight, 0.1),)})
    model = pack("nodes.comfy.model").ComfyModel(patcher, demo.load_clip(), demo.load_vae())
    images = pack("nodes.comfy.clip_vision").image_encoder_of(vision, model)
    size = protocol.ImageSize(128, 128)
    observer = pack("core.training.one_picture.observer").Observer(model, size)
    latents, when = torch.ones(1, LATENT_CHANNELS, 16, 16), torch.tensor([500])

    def crowded(patcher: object) -> None:
        management.unload_all_models()
        load(patcher)

    load = management.load_model_gpu
    with model.session(), torch.no_grad():
        whole = observer.maps(latents, latents, when)
        monkeypatch.setattr(management, "load_model_gpu", crowded)
        assert images.features(torch.rand(1, 3, 64, 64)).vectors.shape == (1, 3, 32)
        again = observer.maps(latents, latents, when)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_the_workflow_runs_from_its_file_with_the_bundled_encoder(run_ui_workflow, repository):
    path = repository / "workflows" / "5 One picture one word.json"
    short = {
        f"{PREFIX}TunePredictedConcept": {"steps": 2, "batch": 2},
        "KSampler": {"steps": 2},
    }
    run = run_ui_workflow(path, short)
    assert run.status == "success", run.error
    titles = {str(node["id"]): node.get("title", node["type"]) for node in json.loads(path.read_text())["nodes"]}
    pictures = {titles[node]: len(ui["images"]) for node, ui in run.ui.items() if "images" in ui}
    assert pictures["The one picture"] == 1
    assert pictures["The result"] == 1, "one sheet of both rows and all three prompts"
