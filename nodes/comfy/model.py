"""The MODEL, CLIP and VAE that a graph has loaded, behind the protocol. What came in is as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any
from weakref import WeakMethod

import comfy.model_base
import comfy.model_sampling as sampling
import torch
from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer
from comfy.ldm.modules.attention import GEGLU

from ...core.models.checkpointed_layers import checkpointed_layers
from ...core.models.frozen import autograd, frozen
from ...core.models.gated import gates_computed_again
from ...core.models.gaussian import draw
from ...core.models.low_rank import is_linear
from ...core.models.protocol import (
    AttentionObserver,
    AttentionWatcher,
    Conditioning,
    Encoding,
    ImageSize,
    NoiseSchedule,
    fingerprint,
)
from ...core.models.requirements import require_discrete
from ...core.models.small_convolutions import small_as_products
from .attention import (
    cross_attention_layers,
    diffusers_names,
    named_layers,
    observed_layers,
    with_contexts,
    with_gradients,
    with_probe,
)
from .cancelling import hear_cancel
from .checkpointing import with_checkpointing
from .features import encoder_features
from .fitting import require_trainable_model, schedule_family, warn_never_loaded
from .other_nodes import blamed, refused_in_words, with_exact_gradients
from .text import differentiable_layers, text_encoders
from .weights import base_weight, load, loaded, normal_tensors, patches_digest, plain_patcher


class ComfyModel:
    """`TextToImageModel` on ComfyUI's sockets, for SD 1.x, SD 2.x and SDXL.

    LoRA and attention patches, CLIPSetLastLayer and a patched `model_sampling` are honoured. Wrappers around
    `apply_model` and the guider are not: they work on denoised latents, and `predict` gives the UNet's raw output.

    Raises:
        ValueError: another kind of model, or a CLIP or VAE of another; the message says which.
    """

    remark: str
    """What people should know of the CLIP, "" for nothing."""

    def __init__(self, model: Any, clip: Any, vae: Any) -> None:
        require_trainable_model(model, clip, vae)
        self.remark = warn_never_loaded(clip)
        self.patcher = plain_patcher(model)
        self.clip_patcher = plain_patcher(clip.patcher)
        self.vae = vae
        base = self.patcher.model
        self.name = type(base.model_config).__name__
        self._unet = base.diffusion_model
        self._is_xl = isinstance(base, comfy.model_base.SDXL)
        self._names = diffusers_names(base.model_config.unet_config)
        self._layers = cross_attention_layers(self._unet, self._names)
        # Held weakly: in a cycle, a copy of streamed weights would stay until the garbage collector comes by.
        ready, alone = WeakMethod(self._ready), partial(load, [self.clip_patcher], alone=False)
        encoders = text_encoders(
            self.clip_patcher,
            clip.tokenizer,
            layer=clip.layer_idx,
            pooled="clip_g" if self._is_xl else None,
            ready=lambda: (ready() or alone)(),
            device=self.device,
        )
        self.text_encoders = {encoder.name: encoder for encoder in encoders}
        model_sampling = self.patcher.get_model_object("model_sampling")
        self.schedule = noise_schedule(model_sampling)
        # What the UNet calls each timestep: itself, save for schedules with fewer timesteps than the UNet knows.
        self._ticks = model_sampling.timestep(model_sampling.sigmas).float().to(self.device)
        self._sigmas = model_sampling.sigmas.to(self.device)
        self.latent_channels = int(base.latent_format.latent_channels)
        # A diagnosis needs no autoencoder.
        self.latent_factor = int(vae.downscale_ratio if vae is not None else base.latent_format.spacial_downscale_ratio)
        self._sizes: dict[tuple[ImageSize, int], torch.Tensor] = {}
        self._held: ExitStack | None = None
        self._checkpointing = False

    @cached_property
    def fingerprint(self) -> str:
        last = _path_of(self._unet, self._layers[-1].module)
        keys = {"conv_in": "input_blocks.0.0", "conv_out": "out.2", "to_k": f"{last}.to_k"}
        tensors = {name: base_weight(self.patcher, f"diffusion_model.{key}.weight") for name, key in keys.items()}
        return fingerprint(tensors, prediction=self.schedule.prediction_type)

    @cached_property
    def applied(self) -> str:
        """What a graph has done to the model, which `fingerprint` does not tell: LoRAs and merges, CLIPSetLastLayer,
        another noise schedule; "" for a model as it was loaded."""
        layers = [encoder.layer for encoder in self.text_encoders.values()]
        parts = [patches_digest(patcher) for patcher in (self.patcher, self.clip_patcher)]
        parts += [str(layers) if any(layer is not None for layer in layers) else ""]
        if "model_sampling" in self.patcher.object_patches:
            parts.append(fingerprint({"alpha_bar": self.schedule.alpha_bar}))
        return "/".join(parts) if any(parts) else ""

    @cached_property
    def autoencoder(self) -> str:
        """What tells the VAE from others: the latents of a training are its own. "" where there is none."""
        if self.vae is None:
            return ""
        kernels = [key for key, value in self.vae.first_stage_model.state_dict().items() if value.ndim > 1]
        return fingerprint({key: base_weight(self.vae.patcher, key) for key in {*kernels[:1], *kernels[-1:]}})

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    @property
    def dtype(self) -> torch.dtype:
        return self.patcher.model.get_dtype_inference()

    def to_latents(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        hear_cancel()
        pixels = ((images.float() + 1) / 2).movedim(1, -1)
        with self.weights_given_back(), _posterior(self.vae, generator) as finish:
            # One by one: what is said of a picture must not depend, in its last digits, on those beside it.
            latents = finish(torch.cat([self.vae.encode(one[None]) for one in pixels]))
        return self.patcher.model.process_latent_in(latents.float()).to(self.device)

    def to_images(self, latents: torch.Tensor) -> torch.Tensor:
        hear_cancel()
        with self.weights_given_back():
            pixels = self.vae.decode(self.patcher.model.process_latent_out(latents.detach().float()))
        return (pixels.movedim(-1, 1).float() * 2 - 1).to(self.device)

    def conditioning(self, encodings: Mapping[str, Encoding], size: ImageSize) -> Conditioning:
        parts = [encodings[name] for name in self.text_encoders]
        context, layers = Encoding.beside(parts)
        if not self._is_xl:
            return Conditioning(context, None, layers)
        pooled = encodings["clip_g"].pooled
        if pooled is None:
            raise ValueError("SDXL needs the pooled output of clip_g")
        numbers = self._size_numbers(size, pooled.shape[1]).expand(pooled.shape[0], -1)
        return Conditioning(context, torch.cat([pooled.float(), numbers.to(pooled.device)], dim=-1), layers)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        probe: AttentionWatcher | None = None,
    ) -> torch.Tensor:
        self._ready()
        timesteps = timesteps.to(self.device)
        hear_cancel()
        y = None if conditioning.y is None else conditioning.y.to(self.device, self.dtype)
        observer = probe if isinstance(probe, AttentionObserver) else None
        options = self._transformer_options(self._sigmas[timesteps], None if observer else probe, conditioning.layers)
        watched = nullcontext() if observer is None else observed_layers(self._layers, observer)
        # The variance-preserving z_t is what `calculate_input` makes of ComfyUI's own latents.
        with watched, blamed(options) as options:
            output = self._unet(
                latents.to(self.device, self.dtype),
                self._ticks[timesteps],
                context=conditioning.context.to(self.device, self.dtype),
                y=y,
                transformer_options=options,
            )
        return output.float()

    @torch.no_grad()
    def features(
        self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> list[torch.Tensor]:
        maps = encoder_features(self._unet, lambda: self.predict(latents, timesteps, conditioning))
        return [one.float() for one in maps]

    def flexible_attention(self) -> AbstractContextManager[None]:
        return nullcontext()  # ComfyUI's attention is that already

    def cross_attention_layers(self) -> Sequence[str]:
        return [layer.name for layer in self._layers]

    def linear_layers(self) -> Mapping[str, torch.nn.Module]:
        return {name: part for name, part in self.weight_layers().items() if is_linear(part)}

    def weight_layers(self) -> Mapping[str, torch.nn.Module]:
        return named_layers(self._unet, self._names)

    @contextmanager
    def session(self, *, gradient_checkpointing: bool = False) -> Iterator[None]:
        if self._held is not None:
            raise RuntimeError("this model is in a training session already")
        modules = [self.patcher.model, self.clip_patcher.model]
        patchers = [self.patcher, self.clip_patcher]
        with (
            refused_in_words(self.patcher),
            frozen(modules),
            loaded(patchers),
            differentiable_layers(modules[1:]),
            small_as_products([self._unet]),
            gates_computed_again([self._unet], GEGLU),
            checkpointed_layers(self._text_layers() if gradient_checkpointing else ()),
            autograd(),
        ):
            self._checkpointing = gradient_checkpointing
            self._hold()
            try:
                yield
            finally:
                self._release()
                self._checkpointing = False

    def _text_layers(self) -> list[torch.nn.Module]:
        return [layer for encoder in self.text_encoders.values() for layer in encoder.layers]

    def _hold(self) -> None:
        self._held = ExitStack()
        self._held.enter_context(normal_tensors([self.patcher.model, self.clip_patcher.model]))

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()

    @contextmanager
    def weights_given_back(self) -> Iterator[None]:
        """No gradient, and weights as ComfyUI knows them: to make room for the VAE it may move or unload them."""
        in_session = self._held is not None
        self._release()
        try:
            with torch.no_grad():
                yield
        finally:
            if in_session:
                load(self._patchers(), alone=True)
                self._hold()

    def _patchers(self) -> list[Any]:
        """Those whose weights a session has loaded."""
        return [self.patcher, self.clip_patcher]

    def _ready(self) -> None:
        if self._held is None:
            load([self.patcher, self.clip_patcher], alone=False)

    def _transformer_options(
        self, sigmas: torch.Tensor, probe: AttentionWatcher | None, contexts: torch.Tensor | None
    ) -> dict[str, Any]:
        options = {
            **self.patcher.model_options["transformer_options"],
            "wrappers": self.patcher.wrappers,
            "sigmas": sigmas,
            "cond_or_uncond": [0],
        }
        if torch.is_grad_enabled():
            options = with_exact_gradients(options)
        if contexts is not None:
            options = with_contexts(options, self._layers, contexts.to(self.device, self.dtype))
        if probe is not None:
            options = with_probe(options, self._layers, probe)
        if self._held is not None:
            options = with_gradients(options)
        return with_checkpointing(options) if self._checkpointing and torch.is_grad_enabled() else options

    def _size_numbers(self, size: ImageSize, pooled_width: int) -> torch.Tensor:
        key = (size, pooled_width)
        if key not in self._sizes:
            # Kept for later steps, so never an inference tensor: autograd refuses to remember those.
            with torch.inference_mode(False), torch.no_grad():
                vector = self.patcher.model.encode_adm(
                    pooled_output=torch.zeros(1, pooled_width),
                    height=size.height,
                    width=size.width,
                    crop_h=size.crop_top,
                    crop_w=size.crop_left,
                    target_height=size.target_height or size.height,
                    target_width=size.target_width or size.width,
                    device=self.device,
                )
                self._sizes[key] = vector[:, pooled_width:].float().to(self.device)
        return self._sizes[key]


def noise_schedule(model_sampling: Any) -> NoiseSchedule:
    """alpha_bar = 1 / (1 + sigma^2) of a discrete schedule, and what its model predicts.

    Raises ValueError for flow matching, EDM and other families, to which the DDPM loss does not apply.
    """
    kinds = {sampling.V_PREDICTION: "v_prediction", sampling.X0: "sample", sampling.EPS: "epsilon"}
    require_discrete("the model", schedule_family(model_sampling))
    kind = next(name for family, name in kinds.items() if isinstance(model_sampling, family))
    return NoiseSchedule(1 / (1 + model_sampling.sigmas.detach().cpu().double() ** 2), kind)


def _path_of(root: torch.nn.Module, wanted: torch.nn.Module) -> str:
    return next(name for name, part in root.named_modules() if part is wanted)


class _Moments(torch.nn.Module):
    """In place of the autoencoder's regularizer: hands out mean and log-variance instead of the mean alone."""

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, None]:
        return z, None


@contextmanager
def _posterior(vae: Any, generator: torch.Generator | None) -> Iterator[Any]:
    """Yields what turns `vae.encode`'s result into latents: samples with a generator, the mean as it is without."""
    autoencoder = vae.first_stage_model
    regularizer = getattr(autoencoder, "regularization", None)
    if generator is None or not isinstance(regularizer, DiagonalGaussianRegularizer):
        yield lambda latents: latents
        return

    def sample(moments: torch.Tensor) -> torch.Tensor:
        mean, log_variance = moments.chunk(2, dim=1)
        return draw(mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)), generator)

    try:
        autoencoder.regularization = _Moments()
        yield sample
    finally:
        autoencoder.regularization = regularizer
