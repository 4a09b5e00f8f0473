"""Two steps of a word with a LoRA on SD3.5 medium at its real size, with random weights, in bf16 on the processor.

Both CLIPs at their real size, T5 left out, as ComfyUI allows. 256 px, batch 1, `gradient_checkpointing`; then the word
and the LoRA are saved, loaded again and applied. Prints seconds and memory for docs/models.md. Takes 8 GB and minutes.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from find_comfyui import find_comfyui

SIDE, STEPS = 256, 2


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights of ordinary size; norms are 1."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.ndim >= 2:
                value.normal_(std=value[0].numel() ** -0.5)
            else:
                value.fill_(0.0 if name.endswith("bias") else 1.0)
    return module.eval().requires_grad_(False)


def built() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE."""
    import comfy.supported_models
    import comfy.supported_models_base
    from comfy.text_encoders import sd3_clip
    from family_memory import sd35

    description = comfy.supported_models.SD3(sd35(24, range(13)))
    description.set_inference_dtype(torch.bfloat16, None)
    target = comfy.supported_models_base.ClipTarget(sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(True, True, False))
    return sockets(description, target, torch.bfloat16, channels=16, pixels=torch.bfloat16)


def sockets(
    description: Any, target: Any, dtype: torch.dtype, *, channels: int, pixels: torch.dtype
) -> tuple[Any, Any, Any]:
    """MODEL, CLIP (in `dtype`) and VAE (of so many latent channels, in the type `pixels`) with random weights."""
    import comfy.model_patcher
    import comfy.sd

    cpu = torch.device("cpu")
    base = description.get_model({}, device=cpu)
    filled(base.diffusion_model)
    clip = comfy.sd.CLIP(target, model_options={"dtype": dtype}, disable_dynamic=True)
    filled(clip.cond_stage_model)
    levels = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    picture = {"double_z": True, "z_channels": channels, "resolution": 256, "in_channels": 3, "out_ch": 3}
    vae = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": picture | levels, "embed_dim": channels}}, dtype=pixels)
    filled(vae.first_stage_model)
    vae.latent_channels = channels
    return comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu), clip, vae


def gigabytes() -> float:
    """The most memory that this process has had, in 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def learned(model: tuple[Any, Any, Any]) -> Any:
    """The concept after `STEPS` steps."""
    from contextual_inversion.core.training.settings import TrainSettings
    from contextual_inversion.core.training.trainer import train
    from contextual_inversion.nodes.comfy.adapting import adapted

    settings = TrainSettings(
        "house", name="real", method="word-lora", steps=STEPS, batch=1, resolution=SIDE, gradient_checkpointing=True,
        learning_rate=1e-3, weight_rate=1e-4,
    )  # fmt: skip
    began = time.perf_counter()
    with train(adapted(*model), torch.rand(1, SIDE, SIDE, 3), settings) as run:
        for event in run:
            print(f"  {type(event).__name__}: {time.perf_counter() - began:.0f} s, {gigabytes():.1f} GB", flush=True)
    return event.concept


def kept(concept: Any, folder: Path) -> Any:
    """The same, saved as a bundle and loaded again."""
    from contextual_inversion.core.files import load_concept, save_bundle

    return load_concept(save_bundle(concept, folder))


def main() -> None:
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, str(find_comfyui()))
    import comfy.options

    comfy.options.enable_args_parsing()
    began = time.perf_counter()
    made = built()
    print(f"built: {time.perf_counter() - began:.0f} s, {gigabytes():.1f} GB", flush=True)
    concept = learned(made)
    moved = sum(bool((value != 0).any()) for name, value in concept.lora.items() if name.endswith("lora_up.weight"))
    print(f"learned: {len(concept.vectors)} words, {moved} of {len(concept.lora) // 3} LoRA layers moved")
    with tempfile.TemporaryDirectory() as folder:
        again = kept(concept, Path(folder))
    assert all(torch.equal(value, concept.lora[name]) for name, value in again.lora.items())
    from contextual_inversion.nodes.comfy.concept_lora import with_weights
    from contextual_inversion.nodes.comfy.concept_tokenizer import with_concept

    model, clip = with_weights(made[0], with_concept(made[1], again), again, 1.0, 1.0)
    tokens = clip.tokenize("a photo of a <real> in the snow")
    with torch.inference_mode():
        said = clip.encode_from_tokens(tokens)
    print(f"applied: {len(model.patches)} patches, a prompt of {said.shape[1]} tokens, {gigabytes():.1f} GB in all")


if __name__ == "__main__":
    main()
