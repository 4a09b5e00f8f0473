"""A ComfyUI in this process, on no port and in folders of its own, with this pack loaded as one of its custom nodes."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models/embeddings")
PACK = Path(__file__).resolve().parent.parent.parent

Prompt = dict[str, dict[str, Any]]


def start(comfyui: Path, base: Path, *, cpu: bool) -> Any:
    """ComfyUI's module `nodes`, with its own extra nodes, its files under `base`."""
    for name in FOLDERS:
        (base / name).mkdir(parents=True)
    sys.path.insert(0, str(comfyui))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu, args.base_directory, args.database_url = cpu, str(base), "sqlite:///:memory:"
    import execution  # noqa: F401 - before `nodes` and `server`, as main.py has it
    import nodes
    import server

    server.PromptServer(asyncio.new_event_loop())
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    return nodes


def load_pack(nodes: Any, cache: Path, times: int) -> list[float]:
    """Load this pack `times` times, each as if for the first time; the processor's seconds of each.

    The first one finds no byte code, which Python makes once after an installation; the others find it in `cache`.
    Raises RuntimeError where ComfyUI cannot load it.
    """
    theirs, modules = set(nodes.NODE_CLASS_MAPPINGS), set(sys.modules)
    sys.pycache_prefix, sys.dont_write_bytecode = str(cache), False
    seconds = []
    for _ in range(times):
        for name in sys.modules.keys() - modules:
            del sys.modules[name]
        began = time.process_time()
        if not asyncio.run(nodes.load_custom_node(str(PACK), theirs)):
            raise RuntimeError("ComfyUI could not load the pack")
        seconds.append(time.process_time() - began)
    return seconds


def run(prompt: Prompt) -> None:
    """Validate a prompt in API format and execute it, as ComfyUI's queue does. Raises RuntimeError with ComfyUI's own
    words where it fails."""
    import execution
    from server import PromptServer

    prompt_id = uuid.uuid4().hex
    valid, problem, outputs, errors = asyncio.run(execution.validate_prompt(prompt_id, prompt, None))
    if not valid:
        raise RuntimeError(f"{problem} {errors}")
    limits = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    executor = execution.PromptExecutor(PromptServer.instance, execution.CacheType.CLASSIC, limits)
    executor.execute(prompt, prompt_id, {"client_id": "bench"}, outputs)
    said = dict(executor.status_messages)
    if "execution_success" not in said:
        raise RuntimeError(said.get("execution_error", {}).get("exception_message", "ComfyUI was interrupted"))


def gives(outputs: Mapping[str, Any]) -> type:
    """A node without inputs whose outputs have these kinds and values."""

    class Gives:
        RETURN_TYPES = tuple(outputs)
        FUNCTION = "give"
        CATEGORY = "bench"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {}}

        def give(self) -> tuple[Any, ...]:
            return tuple(value() for value in outputs.values())

    return Gives
