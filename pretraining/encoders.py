"""Stage "encoders": text and image encoder trained against each other, as CLIP is; afterwards both are frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..core.models.tiny import config
from ..core.models.tiny.build import build_image_encoder
from ..core.models.tiny.token_table import TABLE_KEY, pack
from ..core.models.tiny.weights import write_tensors
from ..core.world.scenes import WORLD_VERSION
from .captions import Words, sample_captions, token_batch, used_tokens
from .forms import BUNDLED, Form
from .pictures import pictures
from .processes import Processes
from .run import Plan, Run


def build_compact_text_encoder(vocabulary: int) -> torch.nn.Module:
    """The text encoder over the used tokens only: the other rows would get no gradient anyway."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    last = vocabulary - 1  # the end token, the greatest id in use
    numbers = {**config.TEXT_ENCODER, "vocab_size": vocabulary, "eos_token_id": last, "pad_token_id": last}
    return CLIPTextModelWithProjection(CLIPTextConfig(**numbers, attn_implementation="eager"))


def small_pictures(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, 3, 64, 64): means of 2 x 2 pixels, what the image encoder sees."""
    side = config.IMAGE_ENCODER["image_size"]
    out = torch.empty((len(images), 3, side, side), dtype=torch.uint8)
    for start in range(0, len(images), 500):
        x = torch.from_numpy(np.array(images[start : start + 500])).permute(0, 3, 1, 2).float()
        out[start : start + 500] = F.interpolate(x, size=(side, side), mode="area").round().to(torch.uint8)
    return out


class Similarity(torch.nn.Module):
    """CLIP's learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.tensor(np.log(1 / 0.07)).float())

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Scaled cosine similarities (n, m)."""
        return self.log_scale.clamp(max=np.log(100.0)).exp() * a @ b.T


def train_encoders(
    folder: Path,
    processes: Processes,
    steps: int = 900,
    batch: int = 192,
    scenes: int = 24_000,
    form: Form = BUNDLED,
) -> None:
    """Train both encoders and write a form's weight files (rank 0)."""
    device = processes.device
    if processes.first:
        pictures(folder / "pictures", "train", scenes)
        pictures(folder / "pictures", "test", 256)
    processes.wait()
    world, images, _ = pictures(folder / "pictures", "train", scenes)
    test_world, test_images, _ = pictures(folder / "pictures", "test", 256)
    small, test_small = small_pictures(images), small_pictures(test_images)
    tokens, words = used_tokens(), Words()
    compact = torch.zeros(config.VOCABULARY, dtype=torch.long)
    compact[tokens] = torch.arange(len(tokens))
    torch.manual_seed(0)
    text = build_compact_text_encoder(len(tokens)).to(device)
    image = build_image_encoder().to(device)
    image.config._attn_implementation = "eager"
    similarity = Similarity().to(device)
    plan = Plan(steps, rate=1e-3, warm_up=60, decay=0.4, weight_decay=0.0, save_every=150)
    run = Run("encoders", {"text": text, "image": image, "similarity": similarity}, plan, folder, processes)
    share = batch // processes.size
    rng = np.random.default_rng([4, processes.rank, run.step])

    def embed(pixels: torch.Tensor, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = compact[token_batch(texts, words)].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            a = image(pixel_values=pixels).image_embeds
            b = text(input_ids=ids).text_embeds
        return F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)

    def loss() -> torch.Tensor:
        index = torch.randint(scenes, (share,), generator=run.generator)
        pixels = (small[index].float() / 127.5 - 1).to(device)
        pixels = pixels + 0.04 * torch.randn(pixels.shape, generator=run.generator).to(device)
        a, b = embed(pixels, sample_captions(world, index.tolist(), rng))
        target = torch.arange(share, device=device) + processes.rank * share
        to_text = F.cross_entropy(similarity(a, processes.gather(b)), target)
        return (to_text + F.cross_entropy(similarity(b, processes.gather(a)), target)) / 2

    def after(step: int) -> dict[str, float] | None:
        if step % 150 or not processes.first:
            return None
        with torch.no_grad():
            captions = sample_captions(test_world, list(range(128)), np.random.default_rng(5))
            a, b = embed((test_small[:128].float() / 127.5 - 1).to(device), captions)
            hits = (similarity(b, a).argmax(1).cpu() == torch.arange(128)).float().mean()
        return {"top1_of_128": float(hits)}

    run.train(loss, after)
    if processes.first:
        facts = {
            "steps": str(run.step),
            "world": WORLD_VERSION,
            "command": "pretraining.tiny_model --stage encoders",
        }
        state = dict(text.state_dict())
        table = pack(tokens, state.pop(TABLE_KEY))
        write_tensors(form.path("text_encoder"), {**state, **table}, facts)
        write_tensors(form.path("image_encoder"), dict(image.state_dict()), facts)
