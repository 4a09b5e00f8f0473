"""What a training step on SDXL adds to the loaded model in ComfyUI, counted at true size on tensors without numbers.

usage: sdxl_memory.py [--side PIXELS]

Weights are stored in float16 and computed with in float32, as on a processor and on cards without half precision, with
gradient checkpointing. The most bytes that live at a time beside the weights, in GiB: of a step of textual inversion,
and of one of CoRe, whose attention loss looks at one more sample with a prompt of its own.
"""

import argparse
import json
import sys
from typing import Any

from find_comfyui import find_comfyui

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "num_heads": -1,
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "use_checkpoint": False,
    "legacy": False,
}
LENGTH = 77


def main() -> int:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64)
    options = parser.parse_args()
    comfyui = find_comfyui()
    if comfyui is None:
        print("there is no ComfyUI; set COMFYUI_PATH", file=sys.stderr)
        return 1
    sys.path.insert(0, str(comfyui))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = args.use_pytorch_cross_attention = True
    print(json.dumps(counted(options.side // 8), indent=1))
    return 0


def counted(side: int) -> dict[str, Any]:
    """GiB of weights, and of what lives beside them at most, for latents of `side`."""
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from contextual_inversion.nodes.comfy.text import differentiable_layers

    kept = {"dtype": torch.float16, "device": "meta", "operations": comfy.ops.manual_cast}
    unet = UNetModel(**UNET, **kept).requires_grad_(False)
    encoders = [encoder(width, layers, kept) for width, layers in ((768, 12), (1280, 32))]
    weights = sum(value.numel() * value.element_size() for part in (unet, *encoders) for value in part.parameters())
    found = {"weights": weights / 2**30}
    with differentiable_layers(encoders):
        for name, seen in (("ti", 0), ("core", 1)):
            for checkpointing in (True, False):
                key = f"{name}{'' if checkpointing else '_without_checkpointing'}"
                found[key] = step(unet, encoders, side, seen, checkpointing) / 2**30
    return found


def encoder(width: int, layers: int, kept: dict[str, Any]) -> Any:
    """One CLIP text model."""
    from comfy.clip_model import CLIPTextModel

    shape = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "hidden_act": "gelu",
        "max_position_embeddings": LENGTH,
        "num_positions": LENGTH,
        "projection_dim": width,
        "eos_token_id": 49407,
    }
    return CLIPTextModel(shape, kept["dtype"], kept["device"], kept["operations"]).requires_grad_(False)


def step(unet: Any, encoders: list[Any], side: int, seen: int, checkpointing: bool) -> int:
    """The most bytes in one step on one sample, with `seen` more of the attention loss, each of a prompt of its own."""
    import torch

    from contextual_inversion.cli.bench.dual_path import peak_bytes
    from contextual_inversion.core.models.checkpointed_layers import checkpointed_layers
    from contextual_inversion.nodes.comfy.checkpointing import with_checkpointing

    layers = [layer for part in encoders for layer in part.text_model.encoder.layers] if checkpointing else []
    options: dict[str, Any] = with_checkpointing({}) if checkpointing else {}
    with torch.device("meta"), peak_bytes() as peak, checkpointed_layers(layers):
        words = [torch.zeros(1, LENGTH, width, requires_grad=True) for width in (768, 1280)]
        contexts = [torch.cat([said(one, word) for one, word in zip(encoders, words, strict=True)], -1)
                    for _ in range(1 + seen)]  # fmt: skip
        given = torch.zeros(1 + seen, 4, side, side), torch.zeros(1 + seen)
        if seen:
            with torch.no_grad():
                one = given[0][:1], given[1][:1]
                unet(*one, context=contexts[0].detach(), y=torch.zeros(1, 2816), transformer_options=dict(options))
        out = unet(*given, context=torch.cat(contexts), y=torch.zeros(1 + seen, 2816), transformer_options=options)
        out.float().square().mean().backward(inputs=words)
    return peak[0]


def said(part: Any, word: Any) -> Any:
    """What a text encoder says at its layer before the last."""
    import torch

    return part.text_model(None, None, embeds=word, num_tokens=[1], intermediate_output=-2, dtype=torch.float32)[1]


if __name__ == "__main__":
    sys.exit(main())
