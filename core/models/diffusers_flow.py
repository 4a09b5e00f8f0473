"""The tiny flow matching model made of diffusers and transformers parts, behind the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..maths.schedule import alpha_bar_of_sigma, flow_latents
from .diffusers_adapter import DiffusersModel
from .diffusers_joint import joint_attentions, jointly_probed
from .diffusers_text import DiffusersTextEncoder
from .protocol import AttentionObserver, AttentionWatcher, Conditioning, Encoding, ImageSize, NoiseSchedule, fingerprint
from .resting import Resting
from .tiny import config
from .tiny.flow import patches, places, shifted, unpatched

if TYPE_CHECKING:
    from .tiny.load import TinyFlow


class FlowTextEncoder(DiffusersTextEncoder):
    """CLIP's text encoder, of which the transformer reads the first `config.FLOW_TOKENS` positions."""

    def __init__(self, module: torch.nn.Module, tokenizer: Any) -> None:
        super().__init__("clip_l", module, tokenizer, pooled=True)
        self._short: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def encode(self, inputs: torch.Tensor, ids: torch.Tensor) -> Encoding:
        """`TextEncoder.encode`. Raises ValueError for a prompt that ends behind what the transformer reads."""
        if ids not in self._short:  # the same tensor comes again for the same prompts: asked once, nobody waits
            if not bool((ids[:, : config.FLOW_TOKENS] == self.eos).any(dim=1).all()):
                raise ValueError(
                    f"a prompt of more than {config.FLOW_TOKENS - 2} tokens is too long for the tiny flow model"
                )
            self._short[ids] = True
        return super().encode(inputs, ids)


class FlowModel(DiffusersModel):
    """`TextToImageModel` on a `FluxTransformer2DModel` over latents in tokens of 2 x 2, with one CLIP text encoder.

    `y` of a `Conditioning` is the pooled prompt. `AttentionProbe`s see what image tokens look at in the text.
    """

    def __init__(self, tiny: TinyFlow, *, device: torch.device | str | None = None) -> None:
        encoder = FlowTextEncoder(tiny.text_encoder, tiny.tokenizer)
        self.unet, self._vae, self._dtype = tiny.transformer, Resting(tiny.vae), None
        self.text_encoders = {encoder.name: encoder}
        self.name = "tiny flow"
        self.device = torch.device(device) if device is not None else next(self.unet.parameters()).device
        self.latent_channels = int(self.vae.config.latent_channels)
        self.latent_factor = config.IMAGE_SIZE // config.LATENT_SIZE
        steps = torch.arange(1, config.FLOW_STEPS + 1, dtype=torch.float64) / config.FLOW_STEPS
        sigmas = shifted(steps)
        self.schedule = NoiseSchedule(alpha_bar_of_sigma(sigmas), "flow")
        self._sigmas, self._alpha_bars = (x.to(self.device, torch.float32) for x in (sigmas, self.schedule.alpha_bar))
        self._joint = joint_attentions(self.unet)

    native_resolution = config.IMAGE_SIZE

    @cached_property
    def fingerprint(self) -> str:
        tensors = {"in": self.unet.x_embedder.weight, "out": self.unet.proj_out.weight}
        return fingerprint(tensors, prediction=self.schedule.prediction_type)

    def conditioning(self, encodings: Mapping[str, Encoding], size: ImageSize) -> Conditioning:
        (encoding,) = (encodings[name] for name in self.text_encoders)
        if encoding.layers is not None:
            raise ValueError("joint attention has no layers of their own for a word (XTI); train a textual inversion")
        return Conditioning(encoding.tokens[:, : config.FLOW_TOKENS], encoding.pooled)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        probe: AttentionWatcher | None = None,
    ) -> torch.Tensor:
        if isinstance(probe, AttentionObserver):
            raise ValueError(f"{self.name}: its attention is seen by probes that take part in it, and by no others")
        at = timesteps.to(self.device)
        x = flow_latents(latents.float(), self._alpha_bars[at])
        height, width = latents.shape[-2:]
        text = conditioning.context
        with jointly_probed(self._joint, text.shape[1], probe) if probe is not None else nullcontext():
            (tokens,) = self.unet(
                patches(x).to(self.dtype),
                text.to(self.dtype),
                conditioning.y.to(self.dtype),
                self._sigmas[at].to(self.dtype),
                img_ids=places(height, width).to(self.device),
                txt_ids=torch.zeros(text.shape[1], 3, device=self.device),
                return_dict=False,
            )
        return unpatched(tokens.float(), height, width)

    def features(self, *_: Any) -> list[torch.Tensor]:
        raise ValueError(f"a tuning-encoder looks with a UNet of Stable Diffusion, and {self.name} is none")

    def flexible_attention(self) -> AbstractContextManager[None]:
        raise ValueError(f"two paths go through a UNet of Stable Diffusion, and {self.name} is none")

    def cross_attention_layers(self) -> Sequence[str]:
        """The blocks, all of which attend to text and image together."""
        return [name.removesuffix(".attn") for name in self._joint]

    def attention_layers(self) -> list[str]:
        """The linear layers of joint attention: what a LoRA learns."""
        return [name for name in self.linear_layers() if ".attn." in name]

    def _checkpointing(self) -> AbstractContextManager[None]:
        raise ValueError(f"{self.name} is small enough to keep what it computes: leave gradient_checkpointing off")
