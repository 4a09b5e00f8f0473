"""What a model must be to be trained on: one list, which every adapter asks before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What the UNets of Stable Diffusion predict; the DDPM loss is that of these."""
SUPPORTED = "use a model of SD 1.x, SD 2.x or SDXL"
OF_ITS_OWN = "use the one that comes with the model's checkpoint"


@dataclass(frozen=True)
class ModelFacts:
    """What an adapter finds in a model, None where it cannot tell. `name` is what the model is called in messages.

    `text_widths` are the text encoders' names and widths, in their order. `purpose` is what it does where that is not
    drawing from text, as "measures depth", "" where it is. `schedule` is the family of its noise where that is not
    Stable Diffusion's, "" where it is.
    """

    name: str
    in_channels: int
    latent_channels: int
    context_width: int | None = None
    text_widths: Sequence[tuple[str, int]] | None = None
    vae_channels: int | None = None
    schedule: str = ""
    purpose: str = ""
    refiner: bool = False

    def require_vae(self) -> None:
        """Raises ValueError that names both where the VAE is that of another model."""
        if self.vae_channels not in (None, self.latent_channels):
            raise ValueError(
                f"the VAE makes latents of {self.vae_channels} channels and {self.name} takes {self.latent_channels}: "
                f"they do not fit; {OF_ITS_OWN}"
            )


def require_trainable(facts: ModelFacts) -> None:
    """Raises ValueError for a model that none of the methods can be trained on; the message says what it is and what
    to use instead."""
    if facts.refiner:
        refuse_refiner(facts.name)
    if facts.purpose:
        raise ValueError(f"{facts.name} {facts.purpose} and draws nothing from text alone; {SUPPORTED}")
    require_channels(facts)
    require_discrete(facts.name, facts.schedule)
    require_text(facts)
    facts.require_vae()


def refuse_refiner(name: str) -> None:
    """Raises ValueError: it has half of SDXL's text encoders and draws no picture of its own."""
    raise ValueError(f"{name} is the SDXL refiner, which only finishes pictures; use SDXL's base model")


def require_discrete(name: str, schedule: str) -> None:
    """Raises ValueError where the `schedule` of `name` is of another family than Stable Diffusion's, which is ""."""
    if schedule:
        raise ValueError(
            f"the noise of {name} is {schedule}, not that of Stable Diffusion (discrete; epsilon, v or x0), and the "
            f"loss would be another one; {SUPPORTED}"
        )


def require_channels(facts: ModelFacts) -> None:
    """Raises ValueError where the UNet takes more than latents, in words that say what such a model is for."""
    extra = facts.in_channels - facts.latent_channels
    if extra == 0:
        return
    kinds = {
        facts.latent_channels + 1: "an inpainting model, which takes a mask and a picture too",
        facts.latent_channels: "an InstructPix2Pix model, which edits pictures",
        3: "the x4 upscaler, which takes a small picture too",
        1: "a model that takes a depth map too",
    }
    kind = kinds.get(extra, "a model that takes more than latents")
    raise ValueError(
        f"{facts.name} takes {facts.in_channels} channels, not {facts.latent_channels}: {kind}; {SUPPORTED} that draws "
        "from text alone"
    )


def require_text(facts: ModelFacts) -> None:
    """Raises ValueError that names both where the text encoders are those of another model."""
    if facts.text_widths is None or facts.context_width is None:
        return
    given = sum(width for _, width in facts.text_widths)
    if given != facts.context_width:
        encoders = ", ".join(f"{name} {width}" for name, width in facts.text_widths)
        raise ValueError(
            f"the CLIP ({encoders}) gives {given} numbers a token and {facts.name} takes {facts.context_width}: they "
            f"do not fit; {OF_ITS_OWN}"
        )
