"""The MODEL, CLIP and VAE of a family that is no UNet of Stable Diffusion, behind the protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any
from weakref import WeakMethod

import comfy.model_sampling as sampling
import torch

from ...core.maths.schedule import alpha_bar_of_sigma, flow_latents
from ...core.models.families import is_narrow
from ...core.models.frozen import autograd, frozen
from ...core.models.kept import kept_for_backward
from ...core.models.low_rank import is_linear
from ...core.models.protocol import (
    AttentionObserver,
    AttentionWatcher,
    Conditioning,
    Encoding,
    ImageSize,
    JointObserver,
    NoiseSchedule,
    TokenMeans,
    fingerprint,
)
from ...core.models.tiny.config import IMAGE_SIZE
from .attention import with_gradients
from .cancelling import hear_cancel
from .families.attention import Looking, Tokens, in_attention, joint_names, tokens_of
from .families.blocks import joint_blocks, lent, lists_of_blocks, numbered
from .families.encoders import family_encoders
from .families.facts import Family
from .families.gradients import differentiable
from .families.joining import FamilyConditioning, Prompt, alike, joined
from .families.requirements import require_family, require_method
from .families.streaming import resting
from .model import ComfyModel
from .other_nodes import blamed, refused_in_words, with_exact_gradients
from .weights import base_weight, fit_together, load, loaded, plain_patcher, unload

FLOW, V = "flow", "v_prediction"


class FamilyModel(ComfyModel):
    """`TextToImageModel` on ComfyUI's sockets, for the families of `facts`.

    Everything that differs between them is ComfyUI's own code: what a prompt becomes, what the denoiser is given beside
    it, and what it predicts. Raises ValueError where MODEL, CLIP and VAE are not of one family.
    """

    remark = ""

    def __init__(self, model: Any, clip: Any, vae: Any) -> None:
        self.family: Family = require_family(model, clip, vae)
        self.patcher, self.clip_patcher, self.vae = plain_patcher(model), plain_patcher(clip.patcher), vae
        base = self.patcher.model
        self.name = type(base.model_config).__name__
        self._unet = base.diffusion_model
        self._blocks = lists_of_blocks(self._unet, self.family.blocks)
        self._joint = joint_blocks(self._unet, self.family.blocks, self.family.apart)
        # Held weakly: in a cycle, weights would stay until the garbage collector comes by.
        ready, told = WeakMethod(self._ready), WeakMethod(self._training)
        alone = partial(load, [self.clip_patcher], alone=False)
        self._text = self.clip_patcher
        encoders = family_encoders(
            clip,
            self.clip_patcher,
            ready=lambda learning: alone() if ready() is None else ready()(learning),
            device=self.device,
            training=lambda: told()(),
        )
        self.text_encoders = {encoder.name: encoder for encoder in encoders}
        self._parts = {encoder.name: encoder.part for encoder in encoders}
        self._sampling = self.patcher.get_model_object("model_sampling")
        self.schedule = noise_schedule(self._sampling)
        self._sigmas = self._sampling.sigmas.to(self.device)
        latents = base.latent_format
        self.latent_channels, self.latent_factor = int(latents.latent_channels), int(latents.spacial_downscale_ratio)
        self._frames = latents.latent_dimensions == 3
        self._held, self._checkpointing = None, False

    @property
    def learns(self) -> tuple[str, ...]:
        """The text encoders whose rows learn where nobody says; () for all."""
        return tuple(name for name in self.family.learns if name in self.text_encoders)

    @property
    def native_resolution(self) -> int:
        """Pixels a side that the family was trained at; the bundled model of it is smaller."""
        return IMAGE_SIZE if is_narrow(self) else self.family.resolution

    @cached_property
    def fingerprint(self) -> str:
        keys = [name for name, part in self.weight_layers().items() if is_linear(part)]
        tensors = {
            name: base_weight(self.patcher, f"diffusion_model.{name}.weight").flatten()[:4096].float()
            for name in (keys[0], keys[len(keys) // 2], keys[-1])
        }
        return fingerprint(tensors, family=self.family.title, layers=len(keys))

    def require_method(self, method: str) -> None:
        """Raises ValueError for what cannot be trained on such a model."""
        require_method(self.family, method)

    def to_latents(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        hear_cancel()
        pixels = ((images.float() + 1) / 2).movedim(1, -1)
        with self.weights_given_back():
            # One by one: to an autoencoder of videos several pictures are frames of one.
            latents = torch.cat([self.vae.encode(one[None]) for one in pixels])
        latents = self.patcher.model.process_latent_in(latents.float()).to(self.device)
        return latents[:, :, 0] if latents.ndim == 5 else latents

    def to_images(self, latents: torch.Tensor) -> torch.Tensor:
        hear_cancel()
        ours = latents.detach().float()
        ours = self.patcher.model.process_latent_out(ours[:, :, None] if self._frames else ours)
        with self.weights_given_back():
            parts = ours.split(1) if self._frames else [ours]
            pixels = torch.cat([self.vae.decode(part) for part in parts])
        pixels = pixels[:, 0] if pixels.ndim == 5 else pixels
        return (pixels.movedim(-1, 1).float() * 2 - 1).to(self.device)

    def conditioning(self, encodings: Mapping[str, Encoding], size: ImageSize) -> FamilyConditioning:
        several = len(next(iter(encodings.values())).raw)
        model = self.clip_patcher.model
        prompts = []
        for index in range(several):
            raw = {name: encodings[name].raw[index] for name in self.text_encoders}
            with self._passing():
                condition = joined(model, self._parts, raw)
            prompts.append(Prompt(raw, condition, self.text_encoders, model, self.family.aligned))
        return FamilyConditioning.of(prompts, [size] * several)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        probe: AttentionWatcher | None = None,
    ) -> torch.Tensor:
        self._ready()
        hear_cancel()
        self._require_shown(probe)
        self._require_room(*latents.shape[-2:])
        timesteps = timesteps.to(self.device)
        seen = _Collected(len(latents)) if probe is not None else None
        prompts, out = conditioning.prompts, {}
        for rows in alike(prompts):
            at = torch.tensor(rows, device=latents.device)
            group = [prompts[row] for row in rows]
            given = (latents[at].to(self.device), timesteps[at], group, conditioning.sizes[rows[0]])
            predicted = self._pass(*given, seen and seen.of(rows, group, isinstance(probe, TokenMeans)))
            out |= dict(zip(rows, predicted, strict=True))
        if seen is not None:
            seen.tell(probe, tokens_of(self._unet, *latents.shape[-2:]))
        return torch.stack([out[row] for row in range(len(latents))]).float()

    def _require_room(self, height: int, width: int) -> None:
        side = (height + width) // 2 * self.latent_factor
        if self.family.above and side <= self.family.above:
            raise ValueError(
                f"{self.family.title} takes pictures of more than {self.family.above} pixels a side, not of {side}: "
                "ComfyUI divides by zero there; choose a larger resolution"
            )

    def _require_shown(self, probe: AttentionWatcher | None) -> None:
        """Raises ValueError where a watcher cannot be shown what it wants."""
        if probe is None:
            return
        if self.family.attends == "unseen":
            raise ValueError(f"{self.family.title}: ComfyUI shows nobody what its attention looks at")
        if isinstance(probe, AttentionObserver) and not isinstance(probe, JointObserver):
            raise ValueError(f"in {self.family.title} text and image are one sequence, which this observer cannot see")

    def attended(self, conditioning: FamilyConditioning) -> dict[str, int]:
        """The text encoders whose tokens a probe sees, each with the number of its first column."""
        columns, start = {}, 0
        for name, places in conditioning.prompts[0].places.items():
            columns[name] = start
            start += len(places)
        return columns

    def _pass(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompts: Sequence[Prompt], size: ImageSize, seen: Any
    ) -> torch.Tensor:
        """One pass over samples whose prompts have equal shapes."""
        base, sigmas = self.patcher.model, self._sigmas[timesteps]
        x = latents
        if self.schedule.prediction_type == FLOW:
            x = flow_latents(latents.float(), self.schedule.alpha_bar.to(self.device)[timesteps])
        x = (x[:, :, None] if self._frames else x).to(self.dtype)
        options = self._options(sigmas, tokens_of(self._unet, *latents.shape[-2:]), seen)
        with self._passing(), blamed(options) as options:
            given = self._conditions(x, prompts, size)
            ticks = base.process_timestep(self._sampling.timestep(sigmas).float(), x=x, **given)
            given_none = lent(self.family.lends, options)
            with numbered(self._blocks, checkpointing=self._checkpointing, given=given_none):
                output = self._unet(x, ticks, transformer_options=options, **given)
        return output[:, :, 0] if output.ndim == 5 else output

    def _conditions(self, x: torch.Tensor, prompts: Sequence[Prompt], size: ImageSize) -> dict[str, Any]:
        """What the denoiser is given beside latents and timesteps, as the model's own `extra_conds` has it."""
        made = {id(prompt): self._extra_conds(x, prompt, size) for prompt in prompts}
        first, *others = [made[id(prompt)] for prompt in prompts]
        given = {}
        for key, value in first.items():
            if len(made) == 1:
                value = value.process_cond(batch_size=len(x), area=None).cond
            else:
                every = [one[key].process_cond(batch_size=1, area=None) for one in (first, *others)]
                value = every[0].concat(every[1:])
            given["context" if key == "c_crossattn" else key] = self._placed(value)
        return given

    def _extra_conds(self, x: torch.Tensor, prompt: Prompt, size: ImageSize) -> dict[str, Any]:
        condition = dict(prompt.condition)
        cond = condition.pop("cond")
        noise = torch.zeros((1, *x.shape[1:]), device=self.device)
        return self.patcher.model.extra_conds(
            **condition, cross_attn=cond, noise=noise, device=self.device, width=size.width, height=size.height,
            prompt_type="positive",
        )  # fmt: skip

    def _placed(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._placed(one) for one in value]
        if not isinstance(value, torch.Tensor):
            return value
        whole = value.dtype in (torch.int, torch.long)
        return value.to(self.device) if whole else value.to(self.device, self.dtype)

    def _options(self, sigmas: torch.Tensor, tokens: Any, seen: Any) -> dict[str, Any]:
        options = {
            **self.patcher.model_options["transformer_options"],
            "wrappers": self.patcher.wrappers,
            "sigmas": sigmas,
            "cond_or_uncond": [0],
        }
        if torch.is_grad_enabled():
            options = with_exact_gradients(options)
        if self._held is not None:
            options = with_gradients(options)
        if seen is not None:
            looking = Looking(self.family, tokens, self._joint, seen, options.get("optimized_attention_override"))
            options = {**options, "optimized_attention_override": looking}
        return options

    def features(self, *_: Any) -> list[torch.Tensor]:
        raise ValueError(f"a tuning-encoder looks with a UNet of Stable Diffusion, and {self.name} is none")

    def cross_attention_layers(self) -> Sequence[str]:
        """The blocks in which the image looks at the text, as recordings call them."""
        return joint_names(len(self._joint))

    def attention_layers(self) -> list[str]:
        """The linear layers of the blocks' attention, by ComfyUI's names: what a LoRA learns."""
        return [name for name in self.linear_layers() if self._in_attention(name)]

    def _in_attention(self, name: str) -> bool:
        return any(name.startswith(f"{one}.") for one in self.family.blocks) and in_attention(name)

    def weight_layers(self) -> Mapping[str, torch.nn.Module]:
        return {
            name: part
            for name, part in self._unet.named_modules()
            if isinstance(getattr(part, "weight", None), torch.Tensor)
        }

    @contextmanager
    def session(self, *, gradient_checkpointing: bool = False) -> Iterator[None]:
        """As ever; the text encoders stay where they rest until something learns in them, and all the time where they
        do not fit beside the denoiser. Their blocks come to the device one after another then."""
        if self._held is not None:
            raise RuntimeError("this model is in a training session already")
        modules = [self.patcher.model, self.clip_patcher.model]
        if self._can_rest():
            unload(self.clip_patcher)
            self._text = resting(self.clip_patcher)
        with refused_in_words(self.patcher), frozen(modules), loaded(self._patchers()), autograd(), kept_for_backward():
            self._checkpointing = gradient_checkpointing
            self._hold()
            try:
                yield
            finally:
                self._release()
                self._checkpointing = False
                if self._can_rest() and not self._streaming():
                    unload(self.clip_patcher)
                self._text = self.clip_patcher

    def _can_rest(self) -> bool:
        return self.clip_patcher.load_device != self.clip_patcher.offload_device

    def _patchers(self) -> list[Any]:
        return [self.patcher, self._text]

    def _ready(self, learning: bool = False) -> None:
        if self._held is None:
            load([self.patcher, self.clip_patcher], alone=False)
        elif learning and self._streaming() and fit_together([self.patcher, self.clip_patcher]):
            self._release()
            unload(self._text)
            self._text = self.clip_patcher
            load(self._patchers(), alone=True)
            self._hold()

    def _streaming(self) -> bool:
        """Whether the text encoders' weights come to the device block by block."""
        return self._text is not self.clip_patcher

    def _training(self) -> tuple[bool, bool, bool]:
        """Whether a training is going on, with checkpointing, and with text encoders that are streamed."""
        return self._held is not None, self._checkpointing, self._streaming()

    def _passing(self) -> AbstractContextManager[None]:
        return differentiable() if self._held is not None else nullcontext()


class _Collected:
    """What a probe is to see of a batch that runs in groups."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.layers: dict[int, dict[int, torch.Tensor]] = {}

    def of(self, rows: Sequence[int], prompts: Sequence[Prompt], means: bool) -> Any:
        """Takes in what one group sees; `means` keeps the mean over heads and image tokens alone."""

        def seen(block: int, probabilities: torch.Tensor, again: bool) -> None:
            if means:
                probabilities = probabilities.mean(dim=(1, 2), keepdim=True)
            every = [in_columns(one, prompt) for prompt, one in zip(prompts, probabilities, strict=True)]
            if not again:
                self.layers.setdefault(block, {}).update(zip(rows, every, strict=True))

        return seen

    def tell(self, probe: Any, tokens: Tokens) -> None:
        for layer, block in enumerate(sorted(self.layers)):
            found = self.layers[block]
            every = torch.stack([found[row] for row in range(self.batch)])
            if isinstance(probe, JointObserver):
                probe.observe_shares(layer, every, (tokens.height, tokens.width))
            else:
                probe(layer, every)


def in_columns(probabilities: torch.Tensor, prompt: Prompt) -> torch.Tensor:
    """(..., T) text tokens of a denoiser in core's order, one text encoder after another (..., sum L); 0 for positions
    that do not come to it."""
    places = torch.cat(list(prompt.places.values()))
    extra = probabilities.shape[-1] - prompt.length
    aligned = extra if prompt.aligned == "right" else 0
    there = places >= 0
    at = (places.clamp(min=0) + aligned).to(probabilities.device)
    return probabilities[..., at] * there.to(probabilities.device, probabilities.dtype)


def noise_schedule(model_sampling: Any) -> NoiseSchedule:
    """Flow matching with the shift that the model samples with, or the discrete schedule of epsilon or v.

    Raises ValueError for other parametrisations.
    """
    sigmas = model_sampling.sigmas.detach().cpu().double()
    if type(model_sampling).__mro__.count(sampling.CONST):
        return NoiseSchedule(alpha_bar_of_sigma(sigmas.clamp(0, 1)), FLOW)
    if isinstance(model_sampling, sampling.ModelSamplingDiscrete) and model_sampling.sigma_data == 1.0:
        kind = V if isinstance(model_sampling, sampling.V_PREDICTION) else "epsilon"
        return NoiseSchedule(1 / (1 + sigmas**2), kind)
    raise ValueError(f"what this model predicts ({type(model_sampling).__name__}) is none of flow, epsilon and v")
