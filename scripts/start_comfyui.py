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

import comfy_requirements
from find_comfyui import FETCHED, REPOSITORY, find_comfyui

FETCHED_VERSION = "0.33.0"
PACK_FOLDER = "contextual-inversion"
GRAPH = "train_a_word"


def main() -> int:
    """Runs until ComfyUI ends; Ctrl-C ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    options, passed_on = parser.parse_known_args()

    comfyui = find_comfyui() or fetch_comfyui()
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


def fetch_comfyui() -> Path:
    """Fetches ComfyUI's sources with comfy-cli and installs what they need beside our own packages."""
    if os.environ.get("COMFYUI_PATH"):
        raise SystemExit(f"COMFYUI_PATH is {os.environ['COMFYUI_PATH']!r}, but no ComfyUI is there")
    print(f"No ComfyUI found; fetching version {FETCHED_VERSION} into {FETCHED}", flush=True)
    comfy = Path(sys.executable).with_name("comfy")
    # --cpu only answers its question about the kind of PyTorch, which is not installed.
    without = ["--cpu", "--skip-manager", "--skip-torch-or-directml", "--skip-requirement"]
    install = [comfy, "--skip-prompt", "--workspace", FETCHED, "install", "--version", FETCHED_VERSION, *without]
    # Without VIRTUAL_ENV comfy-cli would make an environment of its own in there.
    environment = {**os.environ, "DO_NOT_TRACK": "1", "VIRTUAL_ENV": sys.prefix}
    result = subprocess.run(install, env=environment, check=False)
    found = find_comfyui()
    if result.returncode or found is None:
        raise SystemExit("ComfyUI could not be fetched. Get it yourself, then: make comfy COMFYUI_PATH=...")
    comfy_requirements.main()
    return found


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
