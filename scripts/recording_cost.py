"""What Record Attention costs a sampling in a real ComfyUI, as a ratio: with and without it in turns, in one process.

usage: recording_cost.py [--checkpoint FILE] [--turns N] [--side PIXELS] [--batch N] [--steps N] [--gpu]

Without a checkpoint the bundled model is measured. Fails where the two pictures differ in a bit.
"""

import argparse
import json
import sys
from typing import Any

from find_comfyui import find_comfyui

PROMPT = "a photo of a red cat in the snow"


def main() -> int:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=None)
    parser.add_argument("--gpu", action="store_true")
    for name, default in (("turns", 7), ("side", 128), ("batch", 4), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    comfyui = find_comfyui()
    if comfyui is None:
        print("there is no ComfyUI; set COMFYUI_PATH", file=sys.stderr)
        return 1
    sys.path.insert(0, str(comfyui))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = not options.gpu
    print(json.dumps(measured(options), indent=1))
    return 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """`attention_over_plain` as `contextual-inversion bench` has it, through ComfyUI."""
    import comfy.sample
    import torch

    from contextual_inversion.cli.bench.attention import require_same
    from contextual_inversion.cli.bench.interleaved import sampling_figures
    from contextual_inversion.core.inspection.attention.recorder import AttentionRecorder
    from contextual_inversion.nodes.comfy.attention_recording import recording

    model, clip = loaded(options.checkpoint)
    latents = torch.zeros(options.batch, 4, options.side // 8, options.side // 8)
    noise = comfy.sample.prepare_noise(latents, 0)
    with torch.inference_mode():
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
        recorded = recording(model, AttentionRecorder())

        def run(record: bool) -> torch.Tensor:
            given = (options.steps, 4.0, "euler", "normal", positive, negative, latents)
            return comfy.sample.sample(recorded if record else model, noise, *given, disable_pbar=True).cpu()

        figures = sampling_figures("attention_over_plain", run, options.turns, require_same)
    used = {name: getattr(options, name) for name in ("turns", "side", "batch", "steps")}
    return {**figures, **used, "model": options.checkpoint or "bundled"}


def loaded(checkpoint: str | None) -> tuple[Any, Any]:
    """MODEL and CLIP of a file, or of the bundled model."""
    import torch

    if checkpoint is not None:
        import comfy.sd

        return comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=False)[:2]
    from contextual_inversion.nodes.comfy import demo_model

    with torch.inference_mode():
        return demo_model.load_model_patcher(), demo_model.load_clip()


if __name__ == "__main__":
    sys.exit(main())
