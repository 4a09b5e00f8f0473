"""`contextual-inversion COMMAND ...`: finds the command's module, parses its options, writes its figures."""

import functools
import importlib
import inspect
import json
import math
import os
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

from ..core.wording import shortened

# name: (module under this folder, one line for --help)
COMMANDS = {
    "demo": (
        "experiments.demo",
        "train one word with plain textual inversion and by the best recipe, and show both",
    ),
    "train": ("train", "train a word on your own pictures"),
    "optimize": ("optimize", "repair one prompt with a learned word in it"),
    "bench": ("bench.command", "measure the time and memory of a training step, with and without CoRe"),
    "pretrain-contextualizer": ("pretrain_contextualizer", "train the network that MLM guesses masked words with"),
    "pretrain-encoder": ("pretrain_encoder", "train the network that makes a word and a LoRA of one picture"),
    "predict": ("predict", "make a word and a LoRA of one picture, without training"),
    "tune": ("tune", "predict a word from one picture and tune it for a dozen steps"),
    "encoder-trials": ("experiments.encoder_trials", "judge words made of one picture: predicted, tuned, and inverted"),
    "prompts": ("prompts", "write a checked prompt file, of a built-in set or by a local language model"),
    "world-report": ("experiments.world_report", "measure how well the bundled tiny model obeys its prompts"),
    "claims": ("experiments.claims", "test the papers' claims, paired over concepts and seeds, with intervals"),
    "search": ("experiments.search", "choose weights and rates by successive halving, on development concepts"),
    "transplant": (
        "experiments.transplant",
        "find which positions of a prompt carry a word, and which swallow the prompt",
    ),
    "evaluate": ("evaluate", "measure pictures with CLIP-T, CLIP-I and DINO, on the DreamBench protocol"),
    "inspect": ("inspect_file", "say what is in a file, and with --model what its word does to a prompt"),
    "export": ("export", "write the files that another program reads of a word, and say what to type there"),
    "learned-attention": ("experiments.learned_attention", "measure where words learned by TI, CoRe and MLM look"),
    "attention-report": (
        "experiments.attention_report",
        "measure whether words look at the right place of rendered scenes",
    ),
}

# What `pip install "contextual-inversion[train]"` brings, by import name.
TRAIN_EXTRA = {
    "PIL",
    "accelerate",
    "array_api_compat",
    "diffusers",
    "einops",
    "matplotlib",
    "numpy",
    "open_clip",
    "safetensors",
    "torch",
    "torchvision",
    "tqdm",
    "transformers",
    "tyro",
}

Figures = Mapping[str, object]


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 1 the command failed, 2 the call was wrong, 130 Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        from .. import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f"contextual-inversion: no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        run(name, rest)
    except KeyboardInterrupt as stop:
        print(f"\ncontextual-inversion {name}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        lacking = missing_from_extra(error)
        if lacking is not None:
            return failed(
                f"{name} needs {lacking!r}, which is not installed. "
                'Install it with: pip install "contextual-inversion[train]"'
            )
        broken = broken_import(error)
        if os.environ.get("CONTEXTUAL_INVERSION_TRACEBACK") or (isinstance(error, ImportError) and broken is None):
            raise
        failed(shortened(f"{name}: {broken or error}"))
        print("(CONTEXTUAL_INVERSION_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1
    return 0


def failed(why: str) -> int:
    """Says why, and gives the exit code."""
    from ..core.files.printable import printable

    print(printable(f"contextual-inversion {why}", lines=True), file=sys.stderr)
    return 1


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: contextual-inversion COMMAND [options]",
            "",
            *lines,
            "",
            "`contextual-inversion COMMAND --help` lists its options; every command takes --json FILE.",
        ]
    )


def run(name: str, arguments: list[str]) -> None:
    """Imports the command, parses its options and calls it."""
    import tyro

    module = importlib.import_module(f".{COMMANDS[name][0]}", __package__)
    tyro.cli(with_json_option(module.main), prog=f"contextual-inversion {name}", args=arguments)


def missing_from_extra(error: Exception) -> str | None:
    """The package of the extra `[train]` that could not be imported, or None if something else is missing."""
    package = ((error.name or "") if isinstance(error, ModuleNotFoundError) else "").partition(".")[0]
    return package if package in TRAIN_EXTRA else None


def broken_import(error: BaseException) -> str | None:
    """What broke where diffusers or transformers could not import a part of themselves, or None if that is not it.

    Both say only which part it was, and to look at a traceback; the reason, such as a torchvision that does not fit
    PyTorch, is what the chain of errors began with.
    """
    if not str(error).startswith(("Failed to import", "Could not import module")):
        return None
    while error.__cause__ is not None:
        error = error.__cause__
    return f"a package here is broken or does not fit the others: {error}. Compare `pip check` and torch's versions"


def with_json_option(command: Callable[..., Figures | None]) -> Callable[..., None]:
    """`command` with one more option, `--json FILE`, that receives the figures it returns.

    A command that has a parameter `json` is told the file too. Figures that an interruption brings along (`figures` of
    the KeyboardInterrupt) are written as well.
    """
    import tyro

    from .places import require_file

    signature = inspect.signature(command)
    others = {name: parameter for name, parameter in signature.parameters.items() if name != "json"}
    told = len(others) < len(signature.parameters)

    def run_and_write(**options: object) -> None:
        target = options["json"] if told else options.pop("json")
        if isinstance(target, Path):
            require_file(target, "--json")  # before hours of work
        stopped: KeyboardInterrupt | None = None
        try:
            figures = command(**options)
        except KeyboardInterrupt as stop:
            figures, stopped = getattr(stop, "figures", None), stop
            if figures is None:
                raise
        if isinstance(target, Path) and os.environ.get("RANK", "0") == "0":  # one of several under `accelerate launch`
            write_json(target, figures or {})
        if stopped is not None:
            raise stopped

    functools.update_wrapper(run_and_write, command)
    del run_and_write.__wrapped__  # tyro would look through it, find no option `json`, and accept only its default
    kind = typing.Annotated[Path | None, tyro.conf.arg(help="File for the figures.")]
    option = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
    run_and_write.__signature__ = signature.replace(parameters=[*others.values(), option])
    run_and_write.__annotations__ = {**typing.get_type_hints(command, include_extras=True), "json": kind}
    return run_and_write


def write_json(target: Path, figures: Figures) -> None:
    """Writes the figures whole or not at all; a number that is not finite becomes null, as JSON has no NaN."""
    from ..core.files.atomic import atomic_write_verified

    text = json.dumps(plain(figures), indent=2, allow_nan=False) + "\n"
    atomic_write_verified(target, text.encode(), if_exists="replace")


def plain(value: object) -> object:
    """The value in JSON's own types: arrays become lists, paths strings, non-finite numbers None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and PyTorch arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


if __name__ == "__main__":
    sys.exit(main())
