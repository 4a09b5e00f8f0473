"""Every node says in the page what it is for: a help page that names its inputs, and a tooltip on each of them."""

import re

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
