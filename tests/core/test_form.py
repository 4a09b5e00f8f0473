"""The switch between the bundled tiny model and the candidate: one variable, read in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from contextual_inversion.core import form
from contextual_inversion.core.form import BUNDLED, CANDIDATE, FORMS, VARIABLE

LIGHT = """
import json, sys
from contextual_inversion.core.form import ENTERING, FORM
from contextual_inversion.core.models.tiny import config

print(json.dumps({"form": FORM, "entering": ENTERING, "channels": config.LATENT_CHANNELS,
                  "unet": [config.UNET[f"{end}_channels"] for end in ("in", "out")],
                  "vae": config.VAE["latent_channels"],
                  "flow": config.TRANSFORMER["in_channels"]}))
"""
WHOLE = """
import json, torch
from contextual_inversion.cli.experiments.claims import DEVELOPMENT
from contextual_inversion.cli.experiments.flow_trials import flow_judge, flow_model, weights_digest
from contextual_inversion.cli.experiments.trials import demo_model
from contextual_inversion.core.inspection.world.checks import KINDS, Judge
from contextual_inversion.core.models.tiny import load_tiny, tiny_weights_path
from contextual_inversion.core.world.coming import COMING
from contextual_inversion.core.world.concepts import CONCEPTS, RESERVED
from contextual_inversion.core.world.render import concept_images

pictures = concept_images("goblet", 2)[0]
tiny, model, flow = load_tiny(), demo_model(), flow_model()
x = torch.from_numpy(pictures).movedim(-1, 1).float() / 127.5 - 1
with torch.no_grad():
    latents = tiny.vae.encode(x).latents
    text = tiny.text_encoder(torch.full((2, 77), 49407)).last_hidden_state
    predicted = tiny.unet(latents, 500, encoder_hidden_states=text).sample
print(json.dumps({
    "concepts": list(CONCEPTS), "coming": list(COMING), "development": DEVELOPMENT, "kinds": KINDS,
    "reserved": len(RESERVED), "latents": latents.shape[1], "predicted": list(predicted.shape),
    "fingerprint": model.fingerprint, "files": tiny.fingerprint,
    "paths": {part: tiny_weights_path(part).parent.name for part in ("unet", "vae", "text_encoder", "flow_judge")},
    "flow": [flow.fingerprint, weights_digest(), flow.text_encoders["clip_l"].fingerprint],
    "flow_judge": [one.kinds.tolist() for one in flow_judge().read(pictures)],
    "knows": [len(judge.kinds) for judge in (flow_judge(), Judge())],
}))
"""


def told(code: str, value: str | None, *arguments: str) -> Any:
    """The JSON that `code` prints in a process where the variable has `value`."""
    environment = {key: text for key, text in os.environ.items() if key != VARIABLE}
    environment |= {} if value is None else {VARIABLE: value}
    call = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("value", "name", "channels"),
    [(None, BUNDLED, 4), ("", BUNDLED, 4), (BUNDLED, BUNDLED, 4), (CANDIDATE, CANDIDATE, 16)],
)
def test_the_variable_decides_the_numbers(value: str | None, name: str, channels: int) -> None:
    found = told(LIGHT, value)
    assert (found["form"], found["channels"], found["vae"]) == (name, channels, channels)
    assert found["unet"] == [channels, channels]
    assert found["flow"] == 64
    assert bool(found["entering"]) == (name == CANDIDATE)


def test_the_switch_itself_imports_nothing_heavy() -> None:
    code = "import sys; from contextual_inversion.core import form; " \
           "print(sorted({'torch', 'numpy', 'PIL', 'diffusers'} & set(sys.modules)))"  # fmt: skip
    assert told(code, CANDIDATE) == []


def test_another_value_is_refused_and_the_choices_are_named() -> None:
    with pytest.raises(ValueError, match=f"{VARIABLE} is {' or '.join(FORMS)}, not 'new'"):
        form.chosen({VARIABLE: "new"})
    call = [sys.executable, "-m", "contextual_inversion.cli.main", "claims", "--help"]
    said = subprocess.run(call, capture_output=True, text=True, env={**os.environ, VARIABLE: "new"}, check=False)
    assert said.returncode == 1
    assert f"{VARIABLE} is bundled or candidate" in said.stderr
    assert "Traceback" not in said.stderr


@pytest.fixture(scope="module")
def forms() -> dict[str, Any]:
    pytest.importorskip("diffusers")
    return {value: told(WHOLE, value) for value in FORMS}


def test_the_candidate_has_four_concepts_more_all_for_development(forms: dict[str, Any]) -> None:
    old, new = forms[BUNDLED], forms[CANDIDATE]
    assert (len(old["concepts"]), old["reserved"], old["development"]) == (10, 10, ["crested-bird", "goblet"])
    assert new["concepts"] == [*old["concepts"], *new["coming"]]
    assert new["development"] == [*old["development"], *new["coming"]]
    assert new["reserved"] == 14
    assert new["kinds"][: len(old["kinds"])] == old["kinds"]
    assert new["kinds"][len(old["kinds"]) :] == [f"concept:{name}" for name in new["coming"]]


def test_each_form_is_a_model_of_its_own(forms: dict[str, Any]) -> None:
    old, new = forms[BUNDLED], forms[CANDIDATE]
    assert (old["latents"], old["predicted"]) == (4, [2, 4, 16, 16])
    assert (new["latents"], new["predicted"]) == (16, [2, 16, 16, 16])
    assert old["fingerprint"] != new["fingerprint"]
    assert old["files"] != new["files"]
    assert set(old["paths"].values()) == {"weights"}
    # What the candidate has no file of is the bundled one.
    assert new["paths"] == {**old["paths"], "unet": "candidate", "vae": "candidate"}


def test_the_flow_matching_model_is_the_same_in_either_form(forms: dict[str, Any]) -> None:
    old, new = forms[BUNDLED], forms[CANDIDATE]
    assert old["flow"] == new["flow"]
    assert old["flow_judge"] == new["flow_judge"]
    assert old["knows"][0] == new["knows"][0] == 20
