"""A text-to-image model of the protocol in a hundred lines of torch: random weights, milliseconds a step."""

import hashlib
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from contextual_inversion.core.maths.schedule import alpha_bar, scaled_linear_betas
from contextual_inversion.core.models.protocol import (
    AttentionObserver,
    Conditioning,
    Encoding,
    NoiseSchedule,
    fingerprint,
)

VOCABULARY, LENGTH = 96, 20


class StubEncoder(nn.Module):
    """One causal attention layer behind a tokenizer that knows a word by its hash; long words are two tokens."""

    def __init__(self, name="clip_l", width=32):
        super().__init__()
        self.name, self.width, self.max_length = name, width, LENGTH
        self.output = "layer 1, normed"
        self.bos, self.eos, self.pad = VOCABULARY - 2, VOCABULARY - 1, VOCABULARY - 1
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    @property
    def fingerprint(self):
        return fingerprint({"table": self.tokens.weight})

    def tokenize(self, text):
        pieces = [part for word in text.lower().split() for part in (word[:8], word[8:]) if part]
        return [int(hashlib.md5(piece.encode()).hexdigest(), 16) % (VOCABULARY - 2) for piece in pieces]

    def token_text(self, token):
        return f"<{token}>"

    def table(self):
        return self.tokens.weight

    def encode(self, inputs, ids):
        x = inputs + self.positions[: inputs.shape[1]]
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        x = self.last_norm(x + torch.tanh(x))
        eot = (ids == self.eos).int().argmax(-1)
        return Encoding(x, x[torch.arange(len(x)), eot])

    def linear_layers(self):
        return {name: part for name, part in self.weight_layers().items() if isinstance(part, nn.Linear)}

    def weight_layers(self):
        layer = "text_model.encoder.layers.0."
        attention = {layer + "self_attn.q_proj": self.qkv, layer + "self_attn.out_proj": self.out}
        return {**attention, layer + "layer_norm1": self.norm, "text_model.final_layer_norm": self.last_norm}


class CrossAttention(nn.Module):
    def __init__(self, channels, context):
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.q, self.k, self.v = nn.Linear(channels, 32), nn.Linear(context, 32), nn.Linear(context, 32)
        self.out = nn.Linear(32, channels)

    def forward(self, x, context, layer, probe):
        flat = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (self.q(flat), self.k(context), self.v(context)))
        looks_on = isinstance(probe, AttentionObserver)
        if looks_on:
            probe.observe(layer, q, k, None, x.shape[-2:])
        if probe is None or looks_on:
            found = F.scaled_dot_product_attention(q, k, v)
        else:
            probabilities = (q @ k.transpose(-1, -2) / 4).softmax(-1)
            probe(layer, probabilities)
            found = probabilities @ v
        return x + self.out(found.transpose(1, 2).flatten(2)).transpose(1, 2).view_as(x)


class StubModel(nn.Module):
    latent_channels, latent_factor = 4, 8

    def __init__(self, seed=0, encoders=1, prediction="epsilon"):
        super().__init__()
        torch.manual_seed(seed)
        names = ["clip_l", "clip_g"][:encoders]
        self.encoders = nn.ModuleList([StubEncoder(name, 32 + 16 * index) for index, name in enumerate(names)])
        context = sum(encoder.width for encoder in self.encoders)
        self.conv_in, self.conv_mid = nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.attentions = nn.ModuleList([CrossAttention(32, context) for _ in range(2)])
        self.time, self.size = nn.Linear(16, 32), nn.Linear(self.encoders[-1].width + 2, 32)
        self.conv_out = nn.Conv2d(32, 4, 3, padding=1)
        self.to_four = nn.Parameter(torch.randn(4, 3))
        self.name, self.device, self.dtype = "stub", torch.device("cpu"), torch.float32
        self.text_encoders = {encoder.name: encoder for encoder in self.encoders}
        self.schedule = NoiseSchedule(torch.from_numpy(alpha_bar(scaled_linear_betas())), prediction)
        self.predictions, self.sessions = [], 0

    @property
    def fingerprint(self):
        return fingerprint({"conv": self.conv_in.weight})

    @torch.no_grad()
    def to_latents(self, images):
        return torch.einsum("kc,bchw->bkhw", self.to_four, F.avg_pool2d(images, 8))

    @torch.no_grad()
    def to_images(self, latents):
        small = torch.einsum("ck,bkhw->bchw", torch.linalg.pinv(self.to_four), latents)
        return F.interpolate(small, scale_factor=8).clamp(-1, 1)

    def conditioning(self, encodings, size):
        parts = [encodings[name] for name in self.text_encoders]
        context, layers = Encoding.beside(parts)
        if len(parts) == 1:
            return Conditioning(context, None, layers)
        sizes = torch.tensor([[size.height / 1000, size.width / 1000]]).expand(len(context), -1)
        return Conditioning(context, torch.cat([parts[-1].pooled, sizes], -1), layers)

    def predict(self, latents, timesteps, conditioning, probe=None):
        self.predictions.append((len(latents), probe is not None, torch.is_grad_enabled()))
        angles = timesteps[:, None] * torch.logspace(0, -3, 8)
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        if conditioning.y is not None:
            time = time + self.size(conditioning.y)
        x = F.silu(self.conv_in(latents) + time[..., None, None])
        layers = conditioning.layers
        contexts = [conditioning.context] * len(self.attentions) if layers is None else layers
        for index, (attention, context) in enumerate(zip(self.attentions, contexts, strict=True)):
            x = attention(x, context, index, probe)
            x = F.silu(self.conv_mid(x)) + x
        return self.conv_out(x).float()

    @torch.no_grad()
    def features(self, latents, timesteps, conditioning):
        angles = timesteps[:, None] * torch.logspace(0, -3, 8)
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        first = F.silu(self.conv_in(latents) + time[..., None, None])
        second = F.avg_pool2d(self.attentions[0](first, conditioning.context, 0, None), 2)
        return [first, second, F.silu(self.conv_mid(second))]

    def flexible_attention(self):
        return nullcontext()  # nothing here depends on the batch

    def cross_attention_layers(self):
        return [f"down_blocks.{index}.attentions.0.attn2" for index in range(len(self.attentions))]

    def linear_layers(self):
        return {name: part for name, part in self.weight_layers().items() if isinstance(part, nn.Linear)}

    def weight_layers(self):
        attentions = zip(self.cross_attention_layers(), self.attentions, strict=True)
        parts = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
        inner = {f"{name}.{ours}": getattr(module, own) for name, module in attentions for ours, own in parts.items()}
        return {"conv_in": self.conv_in, "conv_out": self.conv_out, "time": self.time, **inner}

    @contextmanager
    def session(self, *, gradient_checkpointing=False):
        flags = [value.requires_grad for value in self.parameters()]
        self.requires_grad_(False)
        self.sessions += 1
        try:
            yield
        finally:
            self.sessions -= 1
            for value, flag in zip(self.parameters(), flags, strict=True):
                value.requires_grad_(flag)


def pictures(count=3, side=64, seed=5):
    """(count, side, side, 3) smooth random pictures in [0, 1]."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(side, side), mode="bilinear").permute(0, 2, 3, 1)
