"""Every node says in the page what it is for: a help page that names its inputs, and a tooltip on each of them."""

import re

import pytest

from contextual_inversion.core.training.methods import first_stages, second_stages
from contextual_inversion.core.training.presets import recipes

PREFIX = "ContextualInversion"
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


def test_every_node_has_a_page_with_its_name_and_inputs(comfyui, repository):
    pages = repository / "js" / "docs"
    ours = {name: node for name, node in comfyui.nodes.NODE_CLASS_MAPPINGS.items() if name.startswith(PREFIX)}
    ours.pop("ContextualInversionTestSink", None)
    assert len(ours) > 15
    assert {page.stem for page in pages.glob("*.md")} == set(ours), "a page for every node, and no other"
    for name, info in comfyui.object_info(set(ours)).items():
        text = (pages / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {info['display_name']}\n"), name
        said = set(re.findall(r"`([^`\n]+)`", text))
        inputs = [one for group in ("required", "optional") for one in info["input"].get(group, {})]
        assert [one for one in inputs if one not in said] == [], name
        assert LINK.findall(text) == [], "a page is shown where no other file of ours is"
        assert "\n|" not in text, f"{name}: the panel that shows it is narrow and cuts tables off"
        for group in ("required", "optional"):
            for one, (_, *options) in info["input"].get(group, {}).items():
                assert options, f"{name}.{one}"
                assert options[0].get("tooltip"), f"{name}.{one}"


@pytest.mark.parametrize(("node", "stages"), [("TrainConcept", first_stages), ("RefineConcept", second_stages)])
def test_a_page_lists_every_recipe_with_its_numbers(repository, node, stages):
    """The numbers of a recipe are in no tooltip: there were too many of them."""
    text = (repository / "js" / "docs" / f"{PREFIX}{node}.md").read_text(encoding="utf-8")
    for name, recipe in recipes(stages().values()).items():
        (line,) = re.findall(rf"^- \*{re.escape(name)}\*: (.*)$", text, re.MULTILINE)
        rate = f"{recipe.values['learning_rate']:.7f}".rstrip("0")
        for said in (f"{recipe.values['steps']:,} steps", f"batch {recipe.values['batch']}", f"rate {rate}"):
            assert re.search(rf"\b{re.escape(said)}\b", line), (name, said)
