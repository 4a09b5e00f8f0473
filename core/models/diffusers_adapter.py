"""Stable Diffusion 1, 2 and SDXL made of diffusers and transformers parts, behind the protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .checkpointed_layers import checkpointed_layers
from .diffusers_attention import checkpoint_probed, cross_attention_modules, layered
from .diffusers_features import encoder_features
from .diffusers_flexible import attention_modules, flexible
from .diffusers_observing import watched
from .diffusers_text import DiffusersTextEncoder
from .frozen import autograd, frozen, on_device
from .gated import gates_computed_again
from .gaussian import draw
from .pipeline_folder import pipeline_options, variants_in
from .protocol import AttentionWatcher, Conditioning, Encoding, ImageSize, NoiseSchedule, fingerprint
from .requirements import (
    PREDICTIONS,
    SUPPORTED,
    ModelFacts,
    refuse_refiner,
    require_discrete,
    require_trainable,
)
from .resting import Again, Resting
from .small_convolutions import small_as_products

if TYPE_CHECKING:
    from .tiny import TinyStableDiffusion

SIZE_NUMBERS = 6
"""SDXL's size conditioning: height, width, crop top and left, target height and width."""


class DiffusersModel:
    """`TextToImageModel` on a `UNet2DConditionModel`, an autoencoder and CLIP text encoders.

    `y` of a `Conditioning` holds the pooled prompt and the six size numbers, which the UNet itself expands.
    With `vae_again`, which loads the autoencoder anew, that takes no memory while steps are learned.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoders: Sequence[DiffusersTextEncoder],
        schedule: NoiseSchedule,
        *,
        name: str = "model",
        device: torch.device | str | None = None,
        vae_again: Again | None = None,
    ) -> None:
        self.unet = unet
        self._vae = Resting(vae, vae_again)
        self.text_encoders = {encoder.name: encoder for encoder in text_encoders}
        self.schedule = schedule
        self.name = name
        self.device = torch.device(device) if device is not None else next(unet.parameters()).device
        self.latent_channels = int(vae.config.latent_channels)
        self.latent_factor = 2 ** (len(_vae_levels(vae)) - 1)
        self._cross_attention = cross_attention_modules(unet)
        self._dtype: torch.dtype | None = None
        require_trainable(_facts(self, text_encoders))

    @classmethod
    def from_pipeline(
        cls,
        pipeline: Any,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> DiffusersModel:
        """Take the parts of a `StableDiffusionPipeline` or `StableDiffusionXLPipeline`, or of a folder that holds one.

        Raises:
            ModuleNotFoundError: diffusers is not installed.
            FileNotFoundError: the folder does not exist.
            ValueError: the pipeline lacks a part that these models have, or has it as a pickle alone.
        """
        diffusers, vae_again = _diffusers(), None
        if isinstance(pipeline, str | Path):
            folder = Path(pipeline)
            if not folder.is_dir():
                raise FileNotFoundError(f"no folder of a diffusers pipeline at {str(pipeline)!r}")
            options = pipeline_options(folder)
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                str(folder), torch_dtype=dtype or torch.float32, local_files_only=True, **options
            )
            vae_again = _loads_again(pipeline.vae, folder / "vae", options["variant"])
        if getattr(pipeline, "text_encoder_2", None) is not None and getattr(pipeline, "text_encoder", None) is None:
            refuse_refiner(type(pipeline).__name__)
        missing = [
            part for part in ("unet", "vae", "text_encoder", "tokenizer") if getattr(pipeline, part, None) is None
        ]
        if missing:
            raise ValueError(f"{type(pipeline).__name__} has no {', '.join(missing)}; {SUPPORTED}")
        return cls(
            pipeline.unet,
            pipeline.vae,
            _text_encoders(pipeline),
            # A configuration says its scheduler's name only where it comes from a file.
            noise_schedule({**pipeline.scheduler.config, "_class_name": type(pipeline.scheduler).__name__}),
            name=Path(str(getattr(pipeline, "name_or_path", "") or type(pipeline).__name__)).name,
            device=device,
            vae_again=vae_again,
        )

    @classmethod
    def from_tiny(cls, tiny: TinyStableDiffusion, *, device: torch.device | str | None = None) -> DiffusersModel:
        """Take the parts of the bundled model."""
        encoder = DiffusersTextEncoder("clip_l", tiny.text_encoder, tiny.tokenizer)
        schedule = noise_schedule(tiny.scheduler_config)
        return cls(tiny.unet, tiny.vae, [encoder], schedule, name="tiny", device=device)

    @cached_property
    def fingerprint(self) -> str:
        last = next(reversed(self._cross_attention.values()))
        tensors = {
            "conv_in": self.unet.conv_in.weight,
            "conv_out": self.unet.conv_out.weight,
            "to_k": last.to_k.weight,
        }
        return fingerprint(tensors, prediction=self.schedule.prediction_type)

    @property
    def dtype(self) -> torch.dtype:
        # Known within a session: diffusers looks through all modules for it, which costs as much as a layer.
        return self.unet.dtype if self._dtype is None else self._dtype

    @property
    def vae(self) -> Any:
        """The autoencoder, loaded again where it had left."""
        return self._vae.get()

    @torch.no_grad()
    def to_latents(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        with self._exact_vae() as vae:
            # One by one: what is said of a picture must not depend, in its last digits, on those beside it.
            encoded = [vae.encode(image[None].to(vae.device, vae.dtype)) for image in images]
        if all(hasattr(one, "latent_dist") for one in encoded):
            mean, std = (torch.cat([getattr(one.latent_dist, name) for one in encoded]) for name in ("mean", "std"))
            latents = draw(mean, std, generator)
        else:
            latents = torch.cat([one.latents for one in encoded])
        mean, std = self._moments
        return (latents.float() - mean.to(latents.device)) / std.to(latents.device) * vae.config.scaling_factor

    @torch.no_grad()
    def to_images(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._moments
        with self._exact_vae() as vae:
            own = latents / vae.config.scaling_factor * std.to(latents.device) + mean.to(latents.device)
            decoded = vae.decode(own.to(vae.device, vae.dtype)).sample
        return decoded.float().clamp(-1, 1)

    def conditioning(self, encodings: Mapping[str, Encoding], size: ImageSize) -> Conditioning:
        parts = [encodings[name] for name in self.text_encoders]
        context, layers = Encoding.beside(parts)
        if not self._is_xl:
            return Conditioning(context, None, layers)
        pooled = next(part.pooled for part in reversed(parts) if part.pooled is not None)
        numbers = _size_numbers(size, pooled.device).expand(pooled.shape[0], -1)
        # Sizes such as 1023 do not survive bfloat16, so `y` stays float32 until the UNet has expanded them.
        return Conditioning(context, torch.cat([pooled.float(), numbers], dim=-1), layers)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        probe: AttentionWatcher | None = None,
    ) -> torch.Tensor:
        if torch.is_grad_enabled():
            self._vae.leave()
        added = None
        if conditioning.y is not None:
            pooled, sizes = conditioning.y.split([conditioning.y.shape[1] - SIZE_NUMBERS, SIZE_NUMBERS], dim=1)
            added = {"text_embeds": pooled.to(self.dtype), "time_ids": sizes}
        attentions = list(self._cross_attention.values())
        with ExitStack() as stack:
            context = conditioning.context
            if conditioning.layers is not None:
                context = stack.enter_context(layered(attentions, conditioning.layers))
            if probe is not None:
                stack.enter_context(watched(attentions, probe))
            output = self.unet(
                latents.to(self.dtype),
                timesteps,
                encoder_hidden_states=context.to(self.dtype),
                added_cond_kwargs=added,
            ).sample
        return output.float()

    @torch.no_grad()
    def features(
        self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> list[torch.Tensor]:
        maps = encoder_features(self.unet, lambda: self.predict(latents, timesteps, conditioning))
        return [one.float() for one in maps]

    def flexible_attention(self) -> AbstractContextManager[None]:
        return flexible(self.unet, self._attentions)

    def cross_attention_layers(self) -> Sequence[str]:
        return list(self._cross_attention)

    def linear_layers(self) -> Mapping[str, torch.nn.Module]:
        return {name: part for name, part in self.unet.named_modules() if isinstance(part, torch.nn.Linear)}

    def weight_layers(self) -> Mapping[str, torch.nn.Module]:
        modules = self.unet.named_modules()
        return {name: part for name, part in modules if isinstance(getattr(part, "weight", None), torch.Tensor)}

    @contextmanager
    def session(self, *, gradient_checkpointing: bool = False) -> Iterator[None]:
        from diffusers.models.activations import GEGLU

        modules = [self.unet, *(encoder.module for encoder in self.text_encoders.values())]
        checkpoints = self._checkpointing() if gradient_checkpointing else nullcontext()
        products, gates = small_as_products([self.unet]), gates_computed_again([self.unet], GEGLU)
        with on_device(modules, self.device), frozen(modules), products, gates, checkpoints, autograd():
            self._vae.begin(self.device)
            before, self._dtype = self._dtype, self.unet.dtype
            try:
                yield
            finally:
                self._dtype = before
                self._vae.end()

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        layers = [layer for encoder in self.text_encoders.values() for layer in encoder.layers]
        with checkpointed_layers(layers), self._checkpointing_unet():
            yield

    @contextmanager
    def _checkpointing_unet(self) -> Iterator[None]:
        names = ("gradient_checkpointing", "_gradient_checkpointing_func")
        before = [
            (part, {name: vars(part)[name] for name in names if name in vars(part)})
            for part in self.unet.modules()
            if hasattr(part, "gradient_checkpointing")
        ]
        try:
            self.unet.enable_gradient_checkpointing(partial(checkpoint_probed, list(self._cross_attention.values())))
            yield
        finally:
            for part, values in before:
                for name in names:
                    vars(part).pop(name, None)
                vars(part).update(values)

    @contextmanager
    def _exact_vae(self) -> Iterator[Any]:
        # SDXL's autoencoder overflows in half precision and says so in its configuration.
        vae = self.vae
        dtype = vae.dtype
        upcast = dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
        try:
            yield vae.float() if upcast else vae
        finally:
            if upcast:
                torch.nn.Module.to(vae, dtype)  # diffusers would warn, of what was so before

    @cached_property
    def _attentions(self) -> list[Any]:
        return attention_modules(self.unet)

    @cached_property
    def _moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the autoencoder's latents, (1, C or 1, 1, 1) each, where its configuration says them:
        by `latents_mean` and `latents_std`, or by `shift_factor`. Beside them `scaling_factor` counts as ever."""
        config = self.vae.config
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            mean, std = [getattr(config, "shift_factor", None) or 0.0], [1.0]
        with torch.inference_mode(False):
            return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)

    @property
    def _is_xl(self) -> bool:
        return getattr(self.unet.config, "addition_embed_type", None) == "text_time"


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule a diffusers scheduler configuration describes, whichever sampler it belongs to.

    Raises ValueError for flow matching, EDM and other families, to which the DDPM loss does not apply.
    """
    require_discrete(f"the scheduler {config.get('_class_name', 'of this model')}", schedule_family(config))
    scheduler = _diffusers().DDPMScheduler.from_config(config)
    return NoiseSchedule(scheduler.alphas_cumprod.double(), str(scheduler.config.prediction_type))


def schedule_family(config: Mapping[str, Any]) -> str:
    """The family of a scheduler's noise where that is not Stable Diffusion's, "" where it is."""
    name, prediction = str(config.get("_class_name", "")), str(config.get("prediction_type", "epsilon"))
    if "Flow" in name or config.get("use_flow_sigmas") or prediction.startswith("flow"):
        return "flow matching"
    if name.startswith("EDM") or "sigma_data" in config:
        return "EDM"
    if not any(key in config for key in ("beta_start", "beta_schedule", "trained_betas")):
        return "one without betas"
    return "" if prediction in PREDICTIONS else f"one for {prediction}"


def _facts(model: DiffusersModel, text_encoders: Sequence[DiffusersTextEncoder]) -> ModelFacts:
    config = model.unet.config
    others = [getattr(config, name, None) for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")]
    sizes = getattr(config, "addition_embed_type", None) in (None, "text_time")
    usual = config.in_channels != model.latent_channels or (sizes and not any(one is not None for one in others))
    return ModelFacts(
        name=f"the UNet of {model.name}",
        in_channels=int(config.in_channels),
        latent_channels=int(config.out_channels),
        context_width=int(config.cross_attention_dim),
        text_widths=[(encoder.name, encoder.width) for encoder in text_encoders],
        vae_channels=model.latent_channels,
        purpose="" if usual else "takes another condition beside text",
    )


def _loads_again(vae: Any, folder: Path, variant: str | None) -> Again:
    """Loads the autoencoder of a pipeline's folder as it was loaded with the pipeline in that `variant`."""
    kind, chosen = type(vae), variant if variant in variants_in(folder) else None

    def again(dtype: torch.dtype) -> Any:
        with torch.inference_mode(False):
            module = kind.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, variant=chosen)
            return torch.nn.Module.to(module, dtype)

    return again


def _text_encoders(pipeline: Any) -> list[DiffusersTextEncoder]:
    second = getattr(pipeline, "text_encoder_2", None)
    if second is not None:
        return [
            DiffusersTextEncoder("clip_l", pipeline.text_encoder, pipeline.tokenizer, penultimate=True),
            DiffusersTextEncoder("clip_g", second, pipeline.tokenizer_2, penultimate=True, pooled=True),
        ]
    # SD 2's OpenCLIP-H is the one with a width of 1024, and it pads with 0 where SD 1 repeats EOT.
    is_h = pipeline.text_encoder.config.hidden_size == 1024 or pipeline.tokenizer.pad_token_id == 0
    return [DiffusersTextEncoder("clip_h" if is_h else "clip_l", pipeline.text_encoder, pipeline.tokenizer)]


@lru_cache(maxsize=64)
def _size_numbers(size: ImageSize, device: torch.device) -> torch.Tensor:
    target = (size.target_height or size.height, size.target_width or size.width)
    # Cached across calls, so never an inference tensor: autograd refuses to keep those.
    with torch.inference_mode(False):
        numbers = [size.height, size.width, size.crop_top, size.crop_left, *target]
        return torch.tensor([numbers], dtype=torch.float32, device=device)


def _vae_levels(vae: Any) -> Sequence[int]:
    levels = getattr(vae.config, "block_out_channels", None)
    return levels if levels is not None else vae.config.encoder_block_out_channels


def _diffusers() -> Any:
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "this needs diffusers; install the extra: pip install 'contextual-inversion[train]'"
        ) from error
    return diffusers
