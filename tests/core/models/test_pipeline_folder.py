"""Which weights of a folder are read: safetensors of any variant, and never a pickle."""

import pytest
import torch
from small_pipelines import pipeline

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.image_encoder import ImageEncoder
from contextual_inversion.core.models.pipeline_folder import chosen_variant, part_options, variants_in


@pytest.mark.parametrize(
    ("parts", "variant"),
    [
        ([{""}, {"", "fp16"}], None),
        ([{"fp16"}, {"fp16"}], "fp16"),
        ([{""}, {"fp16"}], "fp16"),
        ([{"fp16", "non_ema"}, {"fp16", "bf16"}], "fp16"),
        ([{"bf16", "fp16"}], "bf16"),
        ([{"odd"}], "odd"),
        ([], None),
    ],
)
def test_the_variant_is_the_one_that_is_there_for_the_parts_without_a_plain_file(parts, variant):
    assert chosen_variant(parts) == variant


def test_a_variant_is_read_from_the_names_of_files(tmp_path):
    for name in (
        "diffusion_pytorch_model.fp16.safetensors", "model-00001-of-00002.safetensors", "openvino_model.safetensors",
        "model.bf16-00001-of-00002.safetensors", "model-00001-of-00002.int8.safetensors", "model.fp32.bin",
    ):  # fmt: skip
        (tmp_path / name).write_bytes(b"")
    assert variants_in(tmp_path) == {"fp16", "", "bf16", "int8"}
    assert variants_in(tmp_path / "nowhere") == set()


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_folder_of_half_precision_files_alone_is_opened(kind, tmp_path):
    made = pipeline(kind)
    made.unet.half(), made.vae.half(), made.text_encoder.half()
    made.save_pretrained(tmp_path, variant="fp16")
    assert not list(tmp_path.rglob("*model.safetensors"))
    loaded = DiffusersModel.from_pipeline(tmp_path)
    assert loaded.dtype == torch.float32
    weights = loaded.unet.state_dict()
    assert all(torch.equal(weights[name], value.float()) for name, value in made.unet.state_dict().items())


def test_one_part_in_half_precision_does_not_hide_the_plain_files_of_the_others(tmp_path):
    made = pipeline("sd1")
    made.save_pretrained(tmp_path)
    vae = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert DiffusersModel.from_pipeline(tmp_path).fingerprint == DiffusersModel.from_pipeline(made).fingerprint


def test_a_pickle_is_named_and_never_opened(tmp_path, monkeypatch):
    pipeline("sd1").save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    monkeypatch.setattr(torch, "load", lambda *given, **options: pytest.fail("a pickle was opened"))
    with pytest.raises(
        FileNotFoundError, match=r"unet holds its weights as diffusion_pytorch_model\.bin alone"
    ) as raised:
        DiffusersModel.from_pipeline(tmp_path)
    assert len(str(raised.value)) < 400
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match="vision holds its weights as"):
        part_options(tmp_path / "vision")
    with pytest.raises(FileNotFoundError, match="vision holds its weights as"):
        ImageEncoder.from_folder(tmp_path / "vision")
