"""Everything of ComfyUI that this pack leans on, in one list, and what it needs of each.

ComfyUI promises none of it to stay. The check looks at names and signatures when the pack is loaded, so that the log
says which node will not work on another ComfyUI and why, before a training has run into it.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

TRAINING = (
    "TrainConcept",
    "RefineConcept",
    "OptimizeForPrompt",
    "PretrainTuningEncoder",
    "PredictConcept",
    "TunePredictedConcept",
    "DiagnoseConcept",
)
ENCODING = (*TRAINING, "PretrainContextualizer", "LoadContextualizer")
RECORDING = ("RecordAttention", "AttendImage")
SHOWING = ("ShowAttention",)
APPLYING = ("ApplyConcept",)
PATHS = ("DualPath",)
DEMO = ("LoadDemoModel",)
EVALUATING = ("EvaluateConcept",)
LOADING = ("ContextPrompts", "LoadConcept", "SaveConcept", "LoadContextualizer", "LoadTuningEncoder")
UNETS = (*TRAINING, *RECORDING, *PATHS, *APPLYING)
CLIPS = (*ENCODING, *APPLYING, *PATHS)


@dataclass(frozen=True)
class Touched:
    """One thing. `place` is "module:name.of.it"; of a function `takes` are parameters that are given to it by name or
    place, of a class `keeps` what its instances have from the beginning, and `says` strings in its code, such as the
    names of the seams for patches. `by` are the nodes that do not work without it."""

    place: str
    by: tuple[str, ...]
    takes: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    says: tuple[str, ...] = ()


ATTENTION, UNET = "comfy.ldm.modules.attention", "comfy.ldm.modules.diffusionmodules.openaimodel"
PATCHER, WRAPPERS = "comfy.model_patcher:ModelPatcher", "comfy.patcher_extension:WrappersMP"
UNET_PASS = ("x", "timesteps", "context", "y", "control", "transformer_options")

TOUCHED = (
    # The UNet and its attention
    Touched(f"{UNET}:UNetModel", UNETS, keeps=("input_blocks", "middle_block", "output_blocks", "out")),
    Touched(f"{UNET}:UNetModel.forward", UNETS, takes=UNET_PASS),
    Touched(f"{UNET}:UNetModel._forward", UNETS, says=("block", "transformer_index", "input", "middle", "output")),
    Touched(f"{UNET}:forward_timestep_embed", TRAINING, says=("forward_timestep_embed_patch",)),
    Touched(f"{UNET}:ResBlock.forward", TRAINING, takes=("x", "emb")),
    Touched(f"{ATTENTION}:SpatialTransformer", UNETS, keeps=("transformer_blocks", "proj_in", "proj_out")),
    Touched(f"{ATTENTION}:SpatialTransformer.forward", TRAINING, takes=("x", "context", "transformer_options")),
    Touched(f"{ATTENTION}:BasicTransformerBlock", UNETS, keeps=("attn1", "attn2")),
    Touched(
        f"{ATTENTION}:BasicTransformerBlock.forward",
        (*TRAINING, *APPLYING),
        takes=("x", "context", "transformer_options"),
        says=("attn2_patch", "patches_replace", "attn2", "block", "block_index", "n_heads"),
    ),
    Touched(f"{ATTENTION}:CrossAttention", UNETS, keeps=("to_q", "to_k", "to_v", "to_out", "heads")),
    Touched(f"{ATTENTION}:wrap_attn", TRAINING, says=("optimized_attention_override", "transformer_options")),
    Touched(f"{ATTENTION}:attention_pytorch", TRAINING, takes=("q", "k", "v", "heads")),
    Touched("comfy.utils:unet_to_diffusers", UNETS, takes=("unet_config",)),
    # What lies around it
    Touched(f"{PATCHER}.__init__", UNETS, takes=("model", "load_device", "offload_device")),
    Touched(
        PATCHER,
        UNETS,
        keeps=("model", "patches", "backup", "object_patches", "model_options", "wrappers", "load_device"),
    ),
    Touched(f"{PATCHER}.clone", UNETS),
    Touched(f"{PATCHER}.model_size", TRAINING),
    Touched(f"{PATCHER}.is_dynamic", ENCODING),
    Touched(f"{PATCHER}.get_model_object", (*TRAINING, *RECORDING, *PATHS, *APPLYING), takes=("name",)),
    Touched(f"{PATCHER}.partially_load", ENCODING, takes=("device_to", "extra_memory")),
    Touched(f"{PATCHER}.add_wrapper_with_key", UNETS, takes=("wrapper_type", "key", "wrapper")),
    Touched(f"{PATCHER}.set_model_attn2_patch", APPLYING, takes=("patch",)),
    Touched(f"{WRAPPERS}.DIFFUSION_MODEL", UNETS),
    Touched(f"{WRAPPERS}.APPLY_MODEL", (*RECORDING, *PATHS, *APPLYING)),
    Touched(f"{WRAPPERS}.OUTER_SAMPLE", RECORDING),
    Touched(f"{WRAPPERS}.CALC_COND_BATCH", PATHS),
    Touched("comfy.patcher_extension:WrapperExecutor", UNETS, keeps=("class_obj",)),
    Touched("comfy.conds:CONDRegular", (*APPLYING, *PATHS), keeps=("cond",)),
    Touched("comfy.conds:CONDRegular.process_cond", PATHS, takes=("batch_size",)),
    Touched("comfy.conds:CONDRegular.can_concat", PATHS, takes=("other",)),
    Touched("comfy.conds:CONDRegular.concat", PATHS, takes=("others",)),
    Touched("comfy.model_base:BaseModel", UNETS, keeps=("diffusion_model", "model_config", "latent_format")),
    Touched("comfy.model_base:BaseModel.get_dtype_inference", TRAINING),
    Touched("comfy.model_base:BaseModel.process_latent_in", TRAINING, takes=("latent",)),
    Touched("comfy.model_base:BaseModel.process_latent_out", TRAINING, takes=("latent",)),
    Touched("comfy.model_base:SDXL.encode_adm", TRAINING),
    Touched("comfy.model_base:SDXLRefiner.encode_adm", TRAINING),
    Touched("comfy.model_base:ModelType.V_PREDICTION", DEMO),
    Touched("comfy.model_base:Flux", DEMO),
    Touched("comfy.utils:flux_to_diffusers", DEMO, takes=("mmdit_config",)),
    *(
        Touched(f"comfy.model_sampling:{name}", UNETS)
        for name in ("V_PREDICTION", "X0", "EPS", "EDM", "IMG_TO_IMG", "CONST")
    ),
    Touched("comfy.model_sampling:ModelSamplingDiscrete.timestep", TRAINING, takes=("sigma",)),
    Touched("comfy.model_sampling:ModelSamplingDiscrete.sigma", RECORDING, takes=("timestep",)),
    Touched("comfy.model_sampling:ModelSamplingDiscrete.percent_to_sigma", (*PATHS, *APPLYING), takes=("percent",)),
    Touched("comfy.model_sampling:ModelSamplingDiscrete", TRAINING, keeps=("sigma_data",)),
    Touched("comfy.samplers:sampler_object", RECORDING, takes=("name",)),
    Touched("comfy.samplers:_calc_cond_batch", RECORDING, says=("cond_or_uncond", "uuids", "sigmas")),
    Touched("comfy.sample:prepare_noise", RECORDING, takes=("latent_image", "seed")),
    Touched("comfy.sample:sample_custom", RECORDING, takes=("model", "noise", "cfg", "sampler", "sigmas", "seed")),
    Touched("comfy_execution.utils:get_executing_context", RECORDING),
    Touched("comfy.ldm.models.autoencoder:DiagonalGaussianRegularizer", TRAINING),
    Touched(f"{ATTENTION}:GEGLU", TRAINING, keeps=("proj",)),
    # Text encoders
    Touched(
        "comfy.sd:CLIP", CLIPS, keeps=("cond_stage_model", "tokenizer", "patcher", "layer_idx", "use_clip_schedule")
    ),
    Touched("comfy.sd:CLIP.clone", APPLYING),
    Touched("comfy.sd:CLIP.encode_from_tokens", APPLYING, takes=("tokens", "return_pooled", "return_dict")),
    Touched("comfy.sd:CLIP.encode_from_tokens_scheduled", (*APPLYING, *RECORDING), takes=("tokens",)),
    Touched("comfy.text_encoders.sd3_clip:SD3ClipModel", CLIPS),
    Touched("comfy.sd1_clip:SDClipModel", CLIPS, keeps=("transformer", "num_layers", "enable_attention_masks")),
    Touched(
        "comfy.sd1_clip:SDClipModel", CLIPS, keeps=("zero_out_masked", "layer_norm_hidden_state", "options_default")
    ),
    Touched("comfy.clip_model:CLIPTextModel_", ENCODING, keeps=("embeddings", "encoder", "final_layer_norm")),
    Touched(
        "comfy.clip_model:CLIPTextModel_.forward",
        ENCODING,
        takes=("embeds", "num_tokens", "intermediate_output", "final_layer_norm_intermediate", "dtype"),
    ),
    Touched("comfy.clip_model:CLIPEmbeddings", CLIPS, keeps=("token_embedding", "position_embedding")),
    Touched("comfy.clip_model:CLIPLayer", ENCODING, keeps=("layer_norm1", "self_attn", "layer_norm2", "mlp")),
    Touched("comfy.clip_model:CLIPAttention", TRAINING, keeps=("q_proj", "k_proj", "v_proj", "out_proj")),
    Touched("comfy.clip_model:CLIPMLP", TRAINING, keeps=("fc1", "fc2")),
    Touched("comfy.clip_model:CLIPTextModel", CLIPS, keeps=("text_model", "text_projection")),
    Touched("comfy.sd1_clip:SDTokenizer", (*CLIPS, *SHOWING), keeps=("embedding_directory", "embedding_key")),
    Touched(
        "comfy.sd1_clip:SDTokenizer", CLIPS, keeps=("tokenizer", "start_token", "end_token", "pad_token", "inv_vocab")
    ),
    Touched("comfy.sd1_clip:SDTokenizer._try_get_embedding", (*APPLYING, *SHOWING), takes=("embedding_name",)),
    Touched(
        "comfy.sd1_clip:SDTokenizer.tokenize_with_weights", (*APPLYING, *SHOWING), takes=("text", "return_word_ids")
    ),
    *(
        Touched(f"comfy.sd1_clip:{name}", ("OptimizeForPrompt",))
        for name in ("escape_important", "token_weights", "unescape_important")
    ),
    # Loading and saving
    Touched("comfy.model_management:current_loaded_models", ENCODING),
    Touched("comfy.model_management:free_memory", ENCODING, takes=("memory_required", "device", "keep_loaded")),
    Touched("comfy.model_management:load_model_gpu", TRAINING, takes=("model",)),
    Touched("comfy.model_management:load_models_gpu", ENCODING, takes=("models", "memory_required", "force_full_load")),
    Touched("comfy.model_management:InterruptProcessingException", TRAINING),
    Touched("comfy.model_management:throw_exception_if_processing_interrupted", TRAINING),
    Touched("comfy.model_management:is_oom", TRAINING, takes=("e",)),
    Touched("comfy.model_management:in_training", TRAINING),
    Touched("comfy.model_management:get_total_memory", TRAINING, takes=("dev",)),
    Touched("comfy.model_management:get_torch_device_name", TRAINING, takes=("device",)),
    Touched("comfy.utils:ProgressBar.update_absolute", (*TRAINING, *EVALUATING), takes=("value", "total", "preview")),
    Touched("comfy.utils:get_attr", (*ENCODING, *APPLYING), takes=("obj", "attr")),
    Touched("comfy.lora:model_lora_keys_unet", (*APPLYING, *PATHS), takes=("model", "key_map")),
    Touched("comfy.lora:model_lora_keys_clip", (*APPLYING, *PATHS), takes=("model", "key_map")),
    Touched("comfy.sd:load_lora_for_models", (*APPLYING, *PATHS), takes=("model", "clip", "lora")),
    # The demo model
    Touched(
        "comfy.sd:CLIP.__init__", DEMO, takes=("target", "embedding_directory", "model_options", "disable_dynamic")
    ),
    Touched("comfy.sd:VAE.__init__", DEMO, takes=("sd",)),
    Touched("comfy.sd1_clip:SD1Tokenizer", DEMO),
    Touched("comfy.sd1_clip:SD1ClipModel", DEMO),
    Touched("comfy.latent_formats:LatentFormat", DEMO),
    Touched("comfy.supported_models_base:BASE.get_model", DEMO, takes=("state_dict", "device")),
    Touched("comfy.supported_models_base:BASE.set_inference_dtype", DEMO),
    Touched("comfy.supported_models_base:ClipTarget", DEMO),
    Touched("comfy.model_patcher:CoreModelPatcher", DEMO),
    Touched("comfy.model_management:get_torch_device", DEMO),
    Touched("comfy.model_management:unet_offload_device", DEMO),
    # Folders and the page
    Touched("folder_paths:add_model_folder_path", LOADING, takes=("folder_name", "full_folder_path")),
    Touched("folder_paths:models_dir", LOADING),
    *(
        Touched(f"folder_paths:{name}", LOADING, takes=("folder_name",))
        for name in ("get_filename_list", "get_folder_paths", "get_full_path")
    ),
    *(
        Touched(f"folder_paths:{name}", (*LOADING, *TRAINING, *SHOWING))
        for name in ("get_input_directory", "get_user_directory", "get_output_directory", "get_temp_directory")
    ),
    Touched("server:PromptServer.send_sync", TRAINING, takes=("event", "data", "sid")),
    Touched("server:PromptServer.send_progress_text", TRAINING, takes=("text", "node_id")),
    Touched("server:PromptServer", TRAINING, keeps=("client_id", "sockets_metadata", "routes")),
)


def report() -> list[str]:
    """One line in the log for every node that will not work on this ComfyUI. Returns the lines."""
    lines = [
        f"Contextual Inversion: {node} will not work on this ComfyUI{_version()}: {'; '.join(reasons)}"
        for node, reasons in trouble(TOUCHED).items()
    ]
    for line in lines:
        logging.warning(line)
    return lines


def trouble(touched: Iterable[Touched]) -> dict[str, list[str]]:
    """What is missing, by the node that needs it."""
    found: dict[str, list[str]] = {}
    for one in touched:
        for reason in missing(one):
            for node in dict.fromkeys(one.by):
                found.setdefault(node, []).append(reason)
    return found


def missing(one: Touched) -> Iterator[str]:
    """What this ComfyUI lacks of one thing, in words; nothing where all of it is there."""
    module, _, path = one.place.partition(":")
    shown = f"{module}.{path}"
    try:
        there: Any = importlib.import_module(module)
        for name in path.split("."):
            there = getattr(there, name)
    except (ImportError, AttributeError):
        yield f"it has no {shown}"
        return
    lost = [name for name in one.takes if not _takes(there, name)]
    if lost:
        yield f"{shown} takes no {' and no '.join(lost)}"
    known = set(_of_class(there, "co_names")) if one.keeps else set()
    lost = [name for name in one.keeps if name not in known and not hasattr(there, name)]
    if lost:
        yield f"{shown} keeps no {' and no '.join(lost)}"
    lost = [text for text in one.says if text not in _strings(getattr(there, "__code__", None))]
    if lost:
        yield f"{shown} no longer knows {' and '.join(map(repr, lost))}"


def _takes(function: Any, name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _of_class(kind: Any, what: str) -> Iterator[str]:
    """The names that the constructors of a class and its bases set, among others that they use."""
    for base in getattr(kind, "__mro__", ()):
        code = getattr(vars(base).get("__init__"), "__code__", None)
        if code is not None:
            yield from getattr(code, what)


def _strings(code: CodeType | None) -> set[str]:
    """Every string in a function's code, and in that of functions inside."""
    found: set[str] = set()
    for constant in code.co_consts if code is not None else ():
        if isinstance(constant, str):
            found.add(constant)
        elif isinstance(constant, tuple):
            found |= {part for part in constant if isinstance(part, str)}
        elif isinstance(constant, CodeType):
            found |= _strings(constant)
    return found


def _version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return ""
    return f" ({__version__})"
