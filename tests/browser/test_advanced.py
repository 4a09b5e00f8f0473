"""Advanced inputs behind a button in the classic canvas, and which of them stay in sight in both canvases."""

import json

import pytest

MODES = {"classic": False, "nodes2": True}
TRAIN = "ContextualInversionTrainConcept"
PLACE = [120, 160]
APP = "comfyAPI.app.app"
NODE = f"{APP}.rootGraph.nodes.find((one) => one.type === '{TRAIN}')"
SETTLED = "new Promise((resolve) => setTimeout(resolve, 500))"


def advanced_of(server, node: str) -> list[str]:
    """The inputs that a node's schema calls advanced."""
    (told,) = server.ask(f"/object_info/{node}").values()
    inputs = {**told["input"].get("required", {}), **told["input"].get("optional", {})}
    found = {name: more[0] for name, (_, *more) in inputs.items() if more and more[0].get("advanced")}
    # Nodes 2.0 writes no name beside a text of several lines.
    return [name for name, options in found.items() if not options.get("multiline")]


@pytest.fixture
def opened(comfyui_server, mode):
    page = comfyui_server.open(nodes_2=MODES[mode], light=False, width=1440, height=900)
    page.run(f"{APP}.loadGraphData({json.dumps(graph())})")
    page.wait(f"{NODE}?.graph && true")
    comfyui_server.look_at(page, 1, scale=0.7)
    page.run(SETTLED)
    yield page
    assert [error for error in page.errors if "contextual" in error.lower()] == []
    page.close()


def graph(**changes: object) -> dict:
    """One training in an otherwise empty graph."""
    node = {"id": 1, "type": TRAIN, "pos": PLACE, "size": [400, 600], "flags": {}, "order": 0, "mode": 0}
    empty = {"last_node_id": 1, "last_link_id": 0, "links": [], "groups": [], "config": {}, "extra": {}}
    return {**empty, "nodes": [node | changes], "version": 0.4}


def seen(page) -> list[str]:
    """The names of the widgets that the page draws: in the classic canvas those that it calls visible."""
    if page.run("Boolean(window.LiteGraph.vueNodesMode)"):
        labels = "document.querySelectorAll('[data-node-id] [data-testid=widget-layout-field-label]')"
        return page.run(f"[...{labels}].map((one) => one.textContent.trim())")
    return page.run(f"{NODE}.widgets.filter((one) => {NODE}.isWidgetVisible(one)).map(({{ name }}) => name)")


def press(page) -> None:
    """The button, wherever the page has it."""
    if page.run("Boolean(window.LiteGraph.vueNodesMode)"):
        page.click("[data-testid=advanced-inputs-button]")
    else:
        page.run(f"{APP}.canvas.draw(true, true)")
        x, y = page.run(
            f"{APP}.canvas.ds.convertOffsetToCanvas([{NODE}.pos[0] + 100,"
            f"{NODE}.pos[1] + {NODE}.widgets.find(({{ name }}) => name === 'advanced').last_y + 10])"
        )
        page.click_at(x, y)
    page.run(SETTLED)


def height(page) -> float:
    return page.run(f"{NODE}.size[1]")


def sent(page) -> dict:
    return page.run(f"{APP}.graphToPrompt().then(({{ output }}) => output[1].inputs)")


def saved(page) -> dict:
    return page.run(f"{APP}.rootGraph.serialize().nodes.find(({{ type }}) => type === '{TRAIN}')")


def set_to(page, name: str, value: str) -> None:
    page.run(f"{NODE}.widgets.find((one) => one.name === '{name}').value = {value}; undefined")
    page.run(f"{APP}.canvas.setDirty(true, true)")
    page.run(SETTLED)


@pytest.mark.parametrize("mode", MODES)
def test_a_button_shows_and_folds_them_and_all_are_sent_and_saved(comfyui_server, opened, pictures, mode):
    page, names = opened, advanced_of(comfyui_server, TRAIN)
    assert len(names) >= 8
    page.photograph(pictures / f"{mode}-advanced-folded.png")
    assert not set(names) & set(seen(page))
    before, given = height(page), sent(page)
    assert set(names) <= given.keys()
    values = saved(page)["widgets_values"]
    press(page)
    assert set(names) <= set(seen(page))
    assert sent(page) == given
    assert saved(page)["widgets_values"] == values
    page.photograph(pictures / f"{mode}-advanced-shown.png")
    if mode == "classic":
        assert height(page) > before + 20 * len(names)
    # It is kept with the node: after a reload of what was saved, and in a copy.
    page.run(f"{APP}.loadGraphData(JSON.parse(JSON.stringify({APP}.rootGraph.serialize())))")
    page.run(SETTLED)
    assert set(names) <= set(seen(page))
    copied = f"(() => {{ const copy = {NODE}.clone(); return [copy.showAdvanced, {NODE}.showAdvanced]; }})()"
    assert page.run(copied) == [True, True]
    press(page)
    assert not set(names) & set(seen(page))
    if mode == "classic":
        assert height(page) == pytest.approx(before)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_changed_or_linked_stays_in_sight(comfyui_server, opened, pictures, mode):
    page, names = opened, advanced_of(comfyui_server, TRAIN)
    came = sent(page)["rank"]
    set_to(page, "rank", str(came + 3))
    assert set(names) & set(seen(page)) == {"rank"}
    set_to(page, "rank", str(came))
    assert sent(page)["rank"] == came
    assert set(names) & set(seen(page)) == {"rank"}, "nothing vanishes under the hand that sets it back"
    press(page)
    press(page)
    assert not set(names) & set(seen(page)), "as it came, and folded anew"

    # A link to an input that is folded away: dropped on the node, it finds its socket and shows it.
    page.run(
        f"(() => {{ const source = LiteGraph.createNode('PrimitiveInt'); source.pos = [{PLACE[0] - 300}, 200];"
        f"{APP}.rootGraph.add(source);"
        f"source.connect(0, {NODE}, {NODE}.inputs.findIndex(({{ name }}) => name === 'prior_pictures')); }})()"
    )
    page.run(SETTLED)
    assert set(names) & set(seen(page)) == {"prior_pictures"}
    assert isinstance(sent(page)["prior_pictures"], list)
    page.photograph(pictures / f"{mode}-advanced-linked.png")
    place = (
        f"(() => {{ const at = {NODE}.inputs.findIndex(({{ name }}) => name === 'prior_pictures');"
        f"const widget = {NODE}.widgets.find(({{ name }}) => name === 'prior_pictures');"
        f"return [{NODE}.getInputPos(at)[1] - {NODE}.pos[1], widget.y + 10]; }})()"
    )
    if mode == "classic":
        at, wanted = page.run(place)
        assert at == pytest.approx(wanted)
    # Opened again, with that link and a value of somebody else's.
    set_to(page, "resolution", "64")
    page.run(f"{APP}.loadGraphData(JSON.parse(JSON.stringify({APP}.rootGraph.serialize())))")
    page.run(SETTLED)
    assert set(names) & set(seen(page)) == {"prior_pictures", "resolution"}


@pytest.mark.parametrize("mode", ["classic"])
def test_they_are_one_step_of_the_undo_history(opened, mode):
    page = opened
    press(page)
    assert page.run(f"{NODE}.showAdvanced") is True
    tracker = f"{APP}.extensionManager.workflow.activeWorkflow.changeTracker"
    page.run(f"{tracker}.undo()")
    page.run(SETTLED)
    assert not page.run(f"Boolean({NODE}.showAdvanced)")
    page.run(f"{tracker}.redo()")
    page.run(SETTLED)
    assert page.run(f"{NODE}.showAdvanced") is True


@pytest.mark.parametrize("mode", ["classic"])
def test_comfyuis_setting_shows_them_all(comfyui_server, opened, mode):
    page, names = opened, advanced_of(comfyui_server, TRAIN)
    setting = f"{APP}.extensionManager.setting"
    page.run(f"{setting}.set('Comfy.Node.AlwaysShowAdvancedWidgets', true)")
    page.run(SETTLED)
    assert set(names) <= set(seen(page))
    assert "advanced" not in seen(page), "nothing is left to show"
    page.run(f"{setting}.set('Comfy.Node.AlwaysShowAdvancedWidgets', false)")
    page.run(SETTLED)
    assert not set(names) & set(seen(page))
