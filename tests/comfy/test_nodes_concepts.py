"""ApplyConcept, SaveConcept and LoadConcept: in memory and from a file a word is the same word, everywhere."""

import shutil

import pytest
import torch

PREFIX = "ContextualInversion"


def call(name: str, /, **inputs: object) -> dict:
    """The prompt entry of one of this pack's nodes."""
    return {"class_type": PREFIX + name, "inputs": inputs}


def encode(clip: list, text: str) -> dict:
    return {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": text}}


@pytest.fixture
def given(comfyui, monkeypatch):
    """A node that puts a concept of our choice into a graph, and clean folders to save in."""
    import folder_paths

    for kind in ("embeddings", "contextual_inversion"):
        for folder in folder_paths.get_folder_paths(kind):
            shutil.rmtree(folder, ignore_errors=True)
    folder_paths.filename_list_cache.clear()

    def arrange(**concepts: object) -> dict:
        for name, concept in concepts.items():
            monkeypatch.setitem(comfyui.nodes.NODE_CLASS_MAPPINGS, f"Test{name}", node_that_gives(concept))
        return {name: {"class_type": f"Test{name}", "inputs": {}} for name in concepts} | {
            "model": call("LoadDemoModel")
        }

    return arrange


def node_that_gives(value: object) -> type:
    class Gives:
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})
        RETURN_TYPES = ("CONCEPT",)
        FUNCTION = "give"
        CATEGORY = "test"

        def give(self) -> tuple:
            return (value,)

    return Gives


def concept(name: str = "gizmo", n: int = 2, width: int = 128, seed: int = 0, **others: object) -> object:
    from contextual_inversion.core.concept import Concept

    vectors = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return Concept(name=name, class_word="house", vectors={"clip_l": vectors}, **others)


def applied(**inputs: object) -> dict:
    defaults = {"model": ["model", 0], "clip": ["model", 1], "concept": ["thing", 0]}
    return call("ApplyConcept", **defaults | {"strength_model": 1.0, "strength_clip": 1.0, "name": ""} | inputs)


def saved(**inputs: object) -> dict:
    defaults = {"concept": ["thing", 0], "name": "", "if_taken": "add a number", "embedding_file": True}
    return call("SaveConcept", **defaults | {"half_precision": False} | inputs)


def tensors(conditioning: list) -> list[torch.Tensor]:
    ((context, extras),) = conditioning
    return [context, extras["pooled_output"]]


PROMPTS = [
    "embedding:gizmo",
    "a photo of a embedding:gizmo in the snow",
    "a photo of a embedding:gizmo, in the snow",
    "(a embedding:gizmo:1.3) on [the] sand, (sharp)",
    "a embedding:gizmo and another embedding:gizmo <not a word> end",
    "dog,embedding:gizmo is plain text here",
]


def test_in_memory_and_from_a_file_a_word_means_the_same(run_graph, given):
    graph = given(thing=concept()) | {"save": saved(), "apply": applied()}
    graph |= {text: encode(["apply", 1], text) for text in PROMPTS}
    memory = run_graph(graph, keep={text: (text, 0) for text in PROMPTS} | {"typed": ("save", 0)})
    assert memory.status == "success", memory.error
    assert memory.kept["typed"] == "embedding:gizmo"
    # The CLIP that was never applied to anything reads the file.
    graph = {"model": graph["model"]} | {text: encode(["model", 1], text) for text in PROMPTS}
    stock = run_graph(graph, keep={text: (text, 0) for text in PROMPTS})
    for text in PROMPTS:
        for here, there in zip(tensors(memory.kept[text]), tensors(stock.kept[text]), strict=True):
            assert torch.equal(here, there), text


BARE = {
    "a photo of a <gizmo> in the snow": "a photo of a embedding:gizmo in the snow",
    "a <gizmo>, a cat": "a embedding:gizmo , a cat",
    "(a <gizmo>:1.3) here": "(a embedding:gizmo :1.3) here",
    "a<gizmo>b": "a embedding:gizmo b",
    "a <gizmo> and a <other>": "a embedding:gizmo and a <other>",
}


def test_the_bare_word_can_be_typed(run_graph, given):
    graph = given(thing=concept()) | {"apply": applied()}
    graph |= {text: encode(["apply", 1], text) for pair in BARE.items() for text in pair}
    run = run_graph(graph, keep={text: (text, 0) for pair in BARE.items() for text in pair})
    assert run.status == "success", run.error
    for bare, spelled in BARE.items():
        for here, there in zip(tensors(run.kept[bare]), tensors(run.kept[spelled]), strict=True):
            assert torch.equal(here, there), bare


def test_only_the_copy_learns_the_word(run_graph, given):
    text = "a photo of a <gizmo>"
    graph = given(thing=concept()) | {"apply": applied(), "before": encode(["model", 1], text)}
    graph |= {"knows": encode(["apply", 1], text), "after": encode(["model", 1], text + " ")}
    graph["last"] = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["apply", 1], "stop_at_clip_layer": -2}}
    graph["deep"] = encode(["last", 0], text)
    names = ("before", "knows", "after", "deep")
    run = run_graph(graph, keep={name: (name, 0) for name in names})
    assert run.status == "success", run.error
    before, knows, after, deep = (tensors(run.kept[name])[0] for name in names)
    assert torch.equal(before, after)
    assert not torch.equal(before, knows)
    assert not torch.equal(knows, deep)


def test_two_words_in_one_prompt(run_graph, given):
    graph = given(thing=concept(), other=concept("gizmo-red", seed=1)) | {"apply": applied()}
    graph["both"] = applied(model=["apply", 0], clip=["apply", 1], concept=["other", 0])
    graph["renamed"] = applied(name="thing.v2")
    graph["a"] = encode(["both", 1], "a <gizmo> beside a <gizmo-red>")
    graph["b"] = encode(["both", 1], "a embedding:gizmo beside a embedding:gizmo-red")
    graph["c"] = encode(["both", 1], "a <gizmo> beside a <gizmo>")
    graph["d"] = encode(["renamed", 1], "embedding:thing.v2.")
    graph["e"] = encode(["apply", 1], "embedding:gizmo .")
    run = run_graph(graph, keep={name: (name, 0) for name in "abcde"})
    assert run.status == "success", run.error
    a, b, c, d, e = (tensors(run.kept[name])[0] for name in "abcde")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(d, e)


def test_a_lora_of_the_concept_is_applied_with_its_strength(run_graph, given):
    generator = torch.Generator().manual_seed(3)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {f"{name}.lora_down.weight": torch.randn(2, 128, generator=generator)}
    lora |= {f"{name}.lora_up.weight": torch.randn(128, 2, generator=generator), f"{name}.alpha": torch.tensor(2.0)}
    graph = given(thing=concept(lora=lora)) | {"apply": applied(strength_model=0.5)}
    run = run_graph(graph, keep={"model": ("apply", 0), "plain": ("model", 0)})
    assert run.status == "success", run.error
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    assert run.kept["plain"].patches == {}
    assert list(run.kept["model"].patches) == [key]
    assert run.kept["model"].patches[key][0][0] == 0.5


def test_stock_nodes_use_what_is_saved_for_them(run_graph, given, comfyui):
    """Load LoRA on the file in models/loras, and embedding:name, are what ApplyConcept makes of the concept."""
    generator = torch.Generator().manual_seed(3)
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {f"{stem}.diff": torch.randn(128, 128, generator=generator)}
    lora |= {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.diff": torch.randn(128, 128, generator=generator)}
    folder = comfyui.base / "models" / "loras"
    shutil.rmtree(folder, ignore_errors=True)
    graph = given(thing=concept(lora=lora), word=concept("plain")) | {"save": saved(lora_file=True)}
    graph["none"] = saved(concept=["word", 0], lora_file=True)
    graph |= {"apply": applied(), "here": encode(["apply", 1], "a embedding:gizmo")}
    first = run_graph(graph, keep={"model": ("apply", 0), "here": ("here", 0)})
    assert first.status == "success", first.error
    assert [path.name for path in folder.iterdir()] == ["gizmo.safetensors"], "a word alone is no LoRA"
    assert "changed the model" in first.ui["save"]["text"][0]
    assert "changed the model" not in first.ui["none"]["text"][0]
    stock = {"lora_name": "gizmo.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    stock = {"class_type": "LoraLoader", "inputs": {"model": ["model", 0], "clip": ["model", 1], **stock}}
    graph = {"model": graph["model"], "stock": stock, "there": encode(["stock", 1], "a embedding:gizmo")}
    second = run_graph(graph, keep={"model": ("stock", 0), "there": ("there", 0)})
    assert second.status == "success", second.error
    ours, theirs = first.kept["model"].patches, second.kept["model"].patches
    assert list(ours) == list(theirs)
    for key, ((_, (_, (change,)), *_),) in ours.items():
        assert torch.equal(change, theirs[key][0][1][1][0])
    for here, there in zip(tensors(first.kept["here"]), tensors(second.kept["there"]), strict=True):
        assert torch.equal(here, there)


def test_a_word_for_another_model_is_refused(run_graph, given):
    graph = given(thing=concept(width=768)) | {"apply": applied()}
    run = run_graph(graph, keep={"clip": ("apply", 1)})
    assert run.status == "error"
    assert "768" in run.error["exception_message"]
    assert "128" in run.error["exception_message"]
    assert "SD 1.x" in run.error["exception_message"]


def test_what_is_saved_can_be_loaded(run_graph, given, comfyui):
    thing = concept(provenance={"steps": 5})
    graph = given(thing=thing) | {"save": saved(name="shelf/widget")}
    first = run_graph(graph, keep={"text": ("save", 0)})
    assert first.status == "success", first.error
    assert first.kept["text"] == "embedding:shelf/widget"
    assert "embedding:shelf/widget" in first.ui["save"]["text"][0]
    for file in ("contextual_inversion/shelf/widget.safetensors", "embeddings/shelf/widget.safetensors"):
        assert (comfyui.base / "models" / file).is_file()
        assert f"Saved models/{file}" in first.ui["save"]["text"][0].splitlines()
        load = {"model": call("LoadDemoModel"), "load": call("LoadConcept", file=file, clip=["model", 1])}
        load["apply"] = applied(concept=["load", 0])
        load["a"] = encode(["apply", 1], "a <shelf/widget>")
        load["b"] = encode(["model", 1], "a embedding:shelf/widget ")
        run = run_graph(load, keep={"concept": ("load", 0), "text": ("load", 1), "a": ("a", 0), "b": ("b", 0)})
        assert run.status == "success", run.error
        assert torch.equal(run.kept["concept"].vectors["clip_l"], thing.vectors["clip_l"])
        assert run.kept["concept"].class_word == "house"
        assert run.kept["concept"].provenance == {"steps": 5}
        assert run.kept["text"] == "embedding:shelf/widget"
        assert torch.equal(tensors(run.kept["a"])[0], tensors(run.kept["b"])[0])


def test_a_file_of_another_program_with_two_words_gives_either(run_graph, given, comfyui):
    from safetensors.torch import save_file

    words = {name: torch.randn(1, 128) for name in ("<s0>", "<s1>")}
    given()
    (comfyui.base / "models" / "embeddings").mkdir(parents=True, exist_ok=True)
    file = comfyui.base / "models" / "embeddings" / "two.safetensors"
    save_file({f"bundle_emb.{name}.clip_l": value for name, value in words.items()}, file)
    graph = {"load": call("LoadConcept", file="embeddings/two.safetensors")}
    run = run_graph(graph, keep={"concept": ("load", 0)})
    assert "choose one: <s0>, <s1>" in run.error["exception_message"]
    graph["load"]["inputs"]["embedding"] = "<s1>"
    run = run_graph(graph, keep={"concept": ("load", 0), "text": ("load", 1)})
    assert run.status == "success", run.error
    assert torch.equal(run.kept["concept"].vectors["clip_l"], words["<s1>"])
    assert run.kept["text"] == "embedding:s1"


STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
DORA = {f"{STEM}.lora_down.weight": (2, 128), f"{STEM}.lora_up.weight": (128, 2), f"{STEM}.dora_scale": (1, 128)}
TUCKER = {"lora_unet_conv_out.lora_down.weight": (3, 32, 1, 1), "lora_unet_conv_out.lora_up.weight": (4, 3, 1, 1)}
TUCKER |= {"lora_unet_conv_out.lora_mid.weight": (3, 3, 3, 3)}


@pytest.mark.parametrize("shapes", [DORA, TUCKER], ids=["DoRA", "in three parts"])
def test_every_kind_of_lora_that_comfyui_reads_is_applied(run_graph, given, shapes):
    """They come in bundles of other programs, and are not "for another kind of model"."""
    lora = {key: torch.ones(shape) for key, shape in shapes.items()}
    run = run_graph(given(thing=concept(lora=lora)) | {"apply": applied()}, keep={"model": ("apply", 0)})
    assert run.status == "success", run.error
    (patches,) = run.kept["model"].patches.values()
    held = [value for value in patches[0][1].weights if isinstance(value, torch.Tensor)]
    assert sorted(tuple(value.shape) for value in held) == sorted(shapes.values())


@pytest.mark.parametrize(
    ("layout", "keys"), [("auto", {"emb_params"}), ("clip_l, clip_g", {"clip_l"}), ("emb_params", {"emb_params"})]
)
def test_a_word_is_typed_from_a_file_of_any_layout(run_graph, given, comfyui, layout, keys):
    """Stock CLIPTextEncode reads what was saved as what ApplyConcept makes of it, and LoadConcept gives it back."""
    from safetensors.torch import load_file

    thing = concept()
    graph = given(thing=thing) | {"save": saved(layout=layout), "apply": applied()}
    graph["here"] = encode(["apply", 1], "a embedding:gizmo on grass")
    first = run_graph(graph, keep={"here": ("here", 0)})
    assert first.status == "success", first.error
    assert set(load_file(comfyui.base / "models" / "embeddings" / "gizmo.safetensors")) == keys
    load = {"load": call("LoadConcept", file="embeddings/gizmo.safetensors", clip=["model", 1])}
    load |= {"model": call("LoadDemoModel"), "there": encode(["model", 1], "a embedding:gizmo on grass")}
    second = run_graph(load, keep={"concept": ("load", 0), "there": ("there", 0)})
    assert second.status == "success", second.error
    assert torch.equal(second.kept["concept"].vectors["clip_l"], thing.vectors["clip_l"])
    for here, there in zip(tensors(first.kept["here"]), tensors(second.kept["there"]), strict=True):
        assert torch.equal(here, there)


def test_sdxl_keeps_its_layout_and_what_does_not_fit_writes_nothing(run_graph, given, comfyui):
    from dataclasses import replace

    from safetensors.torch import load_file

    both = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
    graph = given(thing=replace(concept(), vectors=both))
    graph = {"thing": graph["thing"], "save": saved(layout="emb_params")}
    run = run_graph(graph)
    assert run.status == "error"
    assert "holds one text encoder" in run.error["exception_message"]
    written = [
        list((comfyui.base / "models" / kind).rglob("gizmo*")) for kind in ("embeddings", "contextual_inversion")
    ]
    assert written == [[], []]
    graph["save"] = saved()
    assert run_graph(graph).status == "success"
    assert set(load_file(comfyui.base / "models" / "embeddings" / "gizmo.safetensors")) == set(both)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-gizmo", None),
        ("My-Gizmo", "diffusers, compel"),
        ("dog", "piece of CLIP's vocabulary"),
        ("gizmoqq", "other words"),
    ],
)
def test_saving_says_which_programs_cannot_type_the_name(run_graph, given, name, said):
    run = run_graph(given(thing=concept()) | {"save": saved(name=name)})
    assert run.status == "success", run.error
    text = run.ui["save"]["text"][0]
    assert ("Not every program can type" in text) == (said is not None)
    assert said is None or said in text
    if name == "gizmoqq":
        assert "sdkit" not in text, "it is in no vocabulary"


def test_onetrainers_file_is_taken_and_what_it_leaves_is_said(run_graph, given, comfyui):
    from safetensors.torch import save_file

    given()
    folder = comfyui.base / "models" / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    rows = torch.randn(2, 128)
    save_file({"clip_l": rows, "clip_l_out": rows + 1}, folder / "trained.safetensors")
    graph = {"model": call("LoadDemoModel")}
    graph["load"] = call("LoadConcept", file="embeddings/trained.safetensors", clip=["model", 1])
    run = run_graph(graph, keep={"concept": ("load", 0), "text": ("load", 1)})
    assert run.status == "success", run.error
    assert torch.equal(run.kept["concept"].vectors["clip_l"], rows)
    assert run.kept["text"] == "embedding:trained"
    assert "clip_l_out" in run.ui["load"]["text"][0]


def test_a_taken_name_is_handled_as_chosen(run_graph, given, comfyui):
    texts = []
    for seed, if_taken in enumerate(("add a number", "add a number", "replace")):
        graph = given(thing=concept(seed=seed)) | {"save": saved(if_taken=if_taken, embedding_file=seed != 0)}
        graph["save"]["inputs"]["half_precision"] = False
        run = run_graph({key: graph[key] for key in ("thing", "save")}, keep={"text": ("save", 0)})
        assert run.status == "success", run.error
        texts.append(run.kept["text"])
        run_graph({"model": call("LoadDemoModel")}, keep={"m": ("model", 0)})
    assert texts == ["embedding:gizmo", "embedding:gizmo_2", "embedding:gizmo"]
    names = sorted(path.stem for path in (comfyui.base / "models" / "contextual_inversion").glob("*.safetensors"))
    assert names == ["gizmo", "gizmo_2"]
    assert (comfyui.base / "models" / "embeddings" / "gizmo_2.safetensors").is_file(), "twins share their number"
    before = {path: path.read_bytes() for path in (comfyui.base / "models").rglob("gizmo*")}
    graph = given(thing=concept(seed=9)) | {"save": saved(if_taken="refuse")}
    run = run_graph(graph)
    assert run.status == "error"
    assert "exists" in run.error["exception_message"]
    graph["save"]["inputs"]["name"] = "gizmo"
    run = run_graph(graph)
    assert run.status == "invalid", "what is known before the graph runs is refused before it"
    assert "exists" in run.error["node_errors"]["save"]["errors"][0]["details"]
    assert {path: path.read_bytes() for path in (comfyui.base / "models").rglob("gizmo*")} == before


HOSTILE = ("../x", "/etc/x", "a/../../x", "a\\b", "con", "x" * 300, ".hidden", "a b", "x.safetensors", "a:b", "~/x")


def test_hostile_names_write_nothing(run_graph, given, comfyui):
    graph = given(thing=concept())
    before = sorted(comfyui.base.rglob("*"))
    for name in HOSTILE:
        run = run_graph(graph | {"save": saved(name=name)})
        assert run.status == "invalid", name
        assert any(" name " in error["details"] for error in run.error["node_errors"]["save"]["errors"]), name
        assert sorted(comfyui.base.rglob("*")) == before, name
        apply = run_graph(graph | {"apply": applied(name=name)}, keep={"clip": ("apply", 1)})
        assert apply.status == "invalid", name


def test_a_file_that_changed_is_loaded_again(run_graph, given):
    run_graph(given(thing=concept(seed=1)) | {"save": saved()})
    load = {"load": call("LoadConcept", file="embeddings/gizmo.safetensors")}
    load["model"] = call("LoadDemoModel")
    load["load"]["inputs"]["clip"] = ["model", 1]
    first = run_graph(load, keep={"concept": ("load", 0)})
    assert first.status == "success", first.error
    assert run_graph(load, keep={"concept": ("load", 0)}).executed == []
    run_graph(given(thing=concept(n=3, seed=2)) | {"save2": saved(if_taken="replace")})
    second = run_graph(load, keep={"concept": ("load", 0)})
    assert "load" in second.executed
    assert second.kept["concept"].length == 3


def test_a_file_that_says_no_class_word_is_given_one(run_graph, given):
    from dataclasses import replace

    graph = given(thing=replace(concept(), class_word="")) | {"save": saved()}
    graph["pictures"] = call("DemoImages", concept="castle", count=1, background="grass", seed=0)
    assert run_graph(graph).status == "success"
    settings = {"train": "LoRA", "recipe": "auto (for this model)", "steps": 1, "learning_rate": 0.001, "batch": 1}
    settings |= {"rank": 1, "seed": 0, "preview_every": 0, "preview_prompt": "", "continue_interrupted": False}
    sockets = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "concept": ["load", 0]}
    graph["refine"] = call("RefineConcept", **sockets, images=["pictures", 0], **settings)
    graph["load"] = call("LoadConcept", file="contextual_inversion/gizmo.safetensors", clip=["model", 1])
    run = run_graph(graph, keep={"refined": ("refine", 0)})
    assert run.status == "error"
    assert "'gizmo' does not say its class word" in run.error["exception_message"]
    graph["load"]["inputs"]["class_word"] = " house "
    run = run_graph(graph, keep={"refined": ("refine", 0)})
    assert run.status == "success", run.error
    assert run.kept["refined"].class_word == "house"


def test_pickles_and_strangers_are_not_opened(run_graph, given, comfyui):
    given()
    folder = comfyui.base / "models" / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"string_to_param": {"*": torch.zeros(1, 768)}}, folder / "old.pt")
    (folder / "renamed.safetensors").write_bytes((folder / "old.pt").read_bytes())
    assert (
        run_graph({"load": call("LoadConcept", file="embeddings/old.pt")}, keep={"c": ("load", 0)}).status == "invalid"
    )
    run = run_graph({"load": call("LoadConcept", file="embeddings/renamed.safetensors")}, keep={"c": ("load", 0)})
    assert run.status == "error"
    assert "pickle" in run.error["exception_message"]
    outside = call("LoadConcept", file="embeddings/../../../etc/passwd")
    assert run_graph({"load": outside}, keep={"c": ("load", 0)}).status == "invalid"


SIGNS = "，。、；：！？」』）】》…—、。！؟؛،।॥،༎·;!?\"')]}|~*&@#$%^=`"


def test_punctuation_of_every_script_ends_a_name(run_graph, given):
    """A sign behind the word is text, as if a space stood between; stock ComfyUI loses the word."""
    texts = {sign: (f"a embedding:gizmo{sign} in snow", f"a embedding:gizmo {sign} in snow") for sign in set(SIGNS)}
    # Escaped, so that brackets are text and not weights.
    texts |= {
        sign: tuple(f"a embedding:gizmo{space}\\{sign} in snow" for space in ("", " "))
        for sign in "()"
        if sign in texts
    }
    graph = given(thing=concept()) | {"apply": applied()}
    graph |= {text: encode(["apply", 1], text) for pair in texts.values() for text in pair}
    run = run_graph(graph, keep={text: (text, 0) for pair in texts.values() for text in pair})
    assert run.status == "success", run.error
    for there, spaced in texts.values():
        for one, other in zip(tensors(run.kept[there]), tensors(run.kept[spaced]), strict=True):
            assert torch.equal(one, other), there


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a embedding:gadget here", "embedding:gadget is lost"),
        ("a embedding:gizmo-red here", "embedding:gizmo-red is lost"),
        ("a embedding:gizmo在雪中", "embedding:gizmo在雪中 is lost"),
        ("a <gadget> here", "<gadget> is read by letters"),
        ("dog,embedding:gizmo", "embedding:gizmo without a space before it is read by letters"),
        ("a <gizmo>, (embedding:gizmo:1.2) <lora:file:1>", None),
    ],
)
def test_a_word_that_is_lost_is_said_in_the_log(run_graph, given, caplog, prompt, said):
    graph = given(thing=concept()) | {"apply": applied(), "text": encode(["apply", 1], prompt)}
    run = run_graph(graph, keep={"text": ("text", 0)})
    assert run.status == "success", run.error
    lines = [line for line in caplog.messages if line.startswith("Contextual Inversion")]
    assert (said is None and not lines) or any(said in line and "<gizmo>" in line for line in lines), lines


def test_a_word_between_two_words(run_graph, given):
    """METHODS.md 5.1: at its ends the blend is the one word and the other, between them the great circle's."""
    from contextual_inversion.core.models.blending import blended

    one, other = concept(), concept("other", seed=1)
    between = {share: blended(one, other, share) for share in (0.0, 0.3, 1.0)}
    graph = given(thing=one, other=other, between=between[0.3], longer=concept("longer", n=3))
    text = "a <gizmo> in the snow"
    graph |= {f"at {share}": applied(blend_with=["other", 0], blend=share) for share in between}
    graph |= {
        "plain": applied(),
        "far": applied(concept=["other", 0], name="gizmo"),
        "made": applied(concept=["between", 0]),
    }
    names = [*(f"at {share}" for share in between), "plain", "far", "made"]
    graph |= {f"text {name}": encode([name, 1], text) for name in names}
    run = run_graph(graph, keep={name: (f"text {name}", 0) for name in names})
    assert run.status == "success", run.error
    found = {name: tensors(run.kept[name])[0] for name in names}
    assert torch.equal(found["at 0.3"], found["made"])
    torch.testing.assert_close(found["at 0.0"], found["plain"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["at 1.0"], found["far"], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found["at 0.3"], found["plain"], atol=1e-3)
    graph["apply"] = applied(blend_with=["longer", 0])
    failed = run_graph({name: graph[name] for name in ("model", "thing", "longer", "apply")}, keep={"x": ("apply", 0)})
    assert failed.status == "error"
    assert "of one length" in failed.error["exception_message"]
