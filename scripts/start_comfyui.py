"""`make comfy`: starts a ComfyUI with this pack linked in and opens the shipped graph in the browser.

usage: start_comfyui.py [--port N] [--no-browser] [any option of ComfyUI's main.py ...]
"""

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

from find_comfyui import REPOSITORY, find_comfyui

PACK_FOLDER = "contextual-inversion"
GRAPH = "first_word"


def main() -> int:
    """Runs until ComfyUI ends; Ctrl-C ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    options, passed_on = parser.parse_known_args()

    comfyui = the_comfyui()
    folder = link_pack(comfyui / "custom_nodes")
    # The page opens a pack's graph by the name of the pack's folder.
    address = f"http://127.0.0.1:{options.port}"
    graph = f"{address}/?template={GRAPH}&source={folder}"

    command = [sys.executable, "main.py", "--port", str(options.port), *without_gpu(), *passed_on]
    print(f"Starting {comfyui} ({' '.join(command[1:])})", flush=True)
    print("(Its message about missing workflow templates concerns ComfyUI's own gallery, which is left out here.)")
    server = subprocess.Popen(command, cwd=comfyui)
    try:
        if wait_until_up(server, f"{address}/system_stats"):
            print(f"\nThe graph: {graph}\nPress Queue (Run) there; Ctrl-C here stops ComfyUI.\n", flush=True)
            if not options.no_browser:
                webbrowser.open(graph)
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        return 0


def the_comfyui() -> Path:
    """Where ComfyUI is; ends with what to do where none is found."""
    if found := find_comfyui():
        return found
    if named := os.environ.get("COMFYUI_PATH"):
        raise SystemExit(f"COMFYUI_PATH is {named!r}, but no ComfyUI is there")
    raise SystemExit(
        "No ComfyUI found. Say where yours is: make comfy COMFYUI_PATH=/folder/of/ComfyUI\n"
        "To get one, `pip install comfy-cli` and `comfy install`: it goes to ~/comfy/ComfyUI, where this looks too."
    )


def link_pack(custom_nodes: Path) -> str:
    """The pack's folder name in custom_nodes; links it in under its registry id if it is not there yet."""
    custom_nodes.mkdir(exist_ok=True)
    for entry in custom_nodes.iterdir():
        if entry.resolve() == REPOSITORY:
            return entry.name
    link = custom_nodes / PACK_FOLDER
    if link.is_symlink() and not link.exists():
        link.unlink()  # it pointed at a checkout that is gone
    if link.exists():
        raise SystemExit(f"{link} is another copy of this pack; remove it, or start ComfyUI yourself")
    link.symlink_to(REPOSITORY, target_is_directory=True)
    print(f"Linked {link} to this checkout")
    return link.name


def without_gpu() -> list[str]:
    """ComfyUI's option for a machine without an accelerator, where there is none."""
    import torch

    return [] if torch.accelerator.is_available() else ["--cpu"]


def wait_until_up(server: subprocess.Popen, address: str) -> bool:
    """Whether ComfyUI answered before it ended."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    return False


if __name__ == "__main__":
    sys.exit(main())
