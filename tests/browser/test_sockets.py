"""The colours of our own sockets and links in ComfyUI's page, in both canvases and themes."""

import pytest

MODES = {"classic": False, "nodes2": True}
APP = "comfyAPI.app.app"
SHEETS = "[...document.querySelectorAll('link')].map(({ href }) => href)"
SHOWN = f"""import({SHEETS}.find((one) => one.endsWith('/style.css'))
    .replace('style.css', 'sockets.js')).then(({{ COLOURS }}) =>
    Object.entries(COLOURS).map(([type, {{ dark, light }}]) => [type, dark, light,
        {APP}.canvas.default_connection_color_byType[type], {APP}.canvas.constructor.link_type_colors[type],
        getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${{type}}`)]))"""


@pytest.mark.parametrize("mode", MODES)
def test_our_sockets_have_their_colours_in_every_theme(comfyui_server, pictures, mode):
    page = comfyui_server.open(nodes_2=MODES[mode], light=False, width=1440, height=900)
    comfyui_server.load(page, "train_a_word_with_mlm", 1, scale=0.5)
    for theme in ("dark", "light", "dark"):
        page.run(f"{APP}.extensionManager.setting.set('Comfy.ColorPalette', '{theme}')")
        page.wait(f"document.documentElement.classList.contains('dark-theme') === {str(theme == 'dark').lower()}")
        page.run("new Promise((resolve) => setTimeout(resolve, 500))")
        found = page.run(SHOWN)
        assert {type for type, *_ in found} == {"CONCEPT", "PROMPTS", "REGULARIZER", "CONTEXTUALIZER", "TUNING_ENCODER"}
        for _, dark, light, *shown in found:
            assert shown == [dark if theme == "dark" else light] * 3
        page.photograph(pictures / f"{mode}-sockets-{theme}.png")
    # A theme that names one of ours has the last word.
    page.run(f"{APP}.canvas.default_connection_color_byType.CONCEPT = '#123456'")
    assert page.run(f"{APP}.canvas.default_connection_color_byType.CONCEPT") == "#123456"
    assert [error for error in page.errors if "contextual" in error.lower()] == []
    page.close()
