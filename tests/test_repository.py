"""The rules of the house: who may import whom, what may ship, and that it can be installed and published."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = ("core", "nodes", "cli")
COMFYUI = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "execution", "folder_paths", "nodes", "server"}
ONLY_IN_TRAIN_EXTRA = {"accelerate", "diffusers", "matplotlib", "open_clip", "tyro"}

# Floors from the ground up: a module may look at its own floor and at those below.
# The two seams that everything speaks, the concept and the protocol of a model, are declarations beside the maths.
# ConceptWorld's scenes, captions and renderer need no model; what judges pictures with one is an inspection.
LAYERS = (
    ("core.maths", "core.wording", "core.later"),
    ("core.concept", "core.models.protocol"),
    ("core.networks", "core.prompts"),
    ("core.files", "core.world"),
    ("core.models", "core.prompt_sets"),
    ("core.inspection",),
    ("core.training.run", "core.training.methods", "core.training.near_words", "core.training.defaults"),
    ("core.training.settings", "core.training.presets"),
    (
        "core.training.word",
        "core.training.weights",
        "core.training.latent_bank",
        "core.training.pictures",
        "core.training.prompts",
    ),
    ("core.training.contextualizer", "core.training.one_picture"),
    ("core.training.regularizers",),
    ("core.training",),
    ("nodes.comfy",),
    ("nodes.schema", "nodes.page"),
    ("nodes",),
    ("cli",),
    ("cli.bench",),
    ("cli.experiments",),
)


class Import(NamedTuple):
    """One imported module: absolute (`torch.nn`), or of this pack, then relative to its root (`core.maths.context`)."""

    name: str
    own: bool
    at_import_time: bool
    line: int


def sources() -> dict[str, Path]:
    """Module name relative to the pack's root -> file, of all shipped Python files."""
    found = {"": REPOSITORY / "__init__.py"}
    for top in SHIPPED:
        for file in sorted((REPOSITORY / top).rglob("*.py")):
            parts = file.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = sources()


def imports_of(module: str) -> Iterator[Import]:
    """All imports in a shipped module, those inside functions too."""
    file = MODULES[module]
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]

    def visit(node: ast.AST, runs: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, False, runs, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield Import(node.module or "", False, runs, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level - 1 <= len(package), f"{file}:{node.lineno} climbs out of the pack"
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                deeper = ".".join([*base, alias.name])
                yield Import(deeper if deeper in MODULES else ".".join(base), True, runs, node.lineno)
        else:
            inside = runs and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside and not typing_only)

    yield from visit(ast.parse(file.read_text(encoding="utf-8"), str(file)), True)


def layer(module: str) -> int | None:
    """Which layer a module belongs to, by the longest name that fits; None for the pack's root and `core` itself."""
    fitting = [
        (len(group), number)
        for number, groups in enumerate(LAYERS)
        for group in groups
        if module == group or module.startswith(f"{group}.")
    ]
    return max(fitting)[1] if fitting else None


def violations(module: str, wrong) -> list[str]:
    return [f"{module}:{found.line} imports {found.name}" for found in imports_of(module) if wrong(found)]


def test_every_shipped_module_belongs_to_a_layer():
    assert [name for name in MODULES if name not in ("", "core") and layer(name) is None] == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_points_back(module):
    own = layer(module)
    if own is None:
        return  # the root and `core` hold no code of a layer; the test above keeps it so
    assert violations(module, lambda found: found.own and (layer(found.name) or 0) > own) == []


@pytest.mark.parametrize("top", SHIPPED)
def test_nodes_and_commands_stand_on_core_alone(top):
    wrong = [
        line
        for module in MODULES
        if module.split(".")[0] == top
        for line in violations(module, lambda found: found.own and found.name.split(".")[0] not in ("", "core", top))
    ]
    assert wrong == []


def arrows() -> dict[str, dict[str, set[str]]]:
    """For every room the arrows among what lies directly in it, files and rooms: room -> child -> children imported.

    The protocol of a model counts as a child of `core`, since it is a declaration that the rooms below models speak.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for module in MODULES:
        for one in imports_of(module):
            if not one.own or one.name not in MODULES:
                continue
            ours, theirs = whereabouts(module), whereabouts(one.name)
            depth = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            if depth is not None:
                room = found.setdefault(".".join(ours[:depth]), {})
                room.setdefault(ours[depth], set()).add(theirs[depth])
    return found


def whereabouts(module: str) -> list[str]:
    """The rooms on the way to a module, and its file."""
    if module == "core.models.protocol":
        return ["core", "protocol"]
    parts = module.split(".") if module else []
    return [*parts, "__init__"] if MODULES[module].name == "__init__.py" else parts


def circle(room: dict[str, set[str]]) -> list[str]:
    """Children of a room that import each other in a circle; [] where there is none."""
    left = {child: set(others) for child, others in room.items()}
    while free := [child for child, others in left.items() if not others & left.keys()]:
        for child in free:
            del left[child]
    return sorted(left)


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_no_room_goes_round_in_a_circle():
    """Neither files of one folder nor folders of one room import each other both ways, at any depth."""
    assert {room: found for room, children in arrows().items() if (found := circle(children))} == {}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("core.training.regularizers")])
def test_regularizers_stand_on_nothing_of_one_picture(module):
    assert violations(module, lambda found: found.name.startswith("core.training.one_picture")) == []


@pytest.mark.parametrize("module", MODULES)
def test_shipped_code_imports_itself_relatively(module):
    """Inside ComfyUI the pack has another name; and `nodes` there is ComfyUI's."""
    foreign = {"contextual_inversion", "core", "cli"}
    assert violations(module, lambda found: not found.own and found.name.split(".")[0] in foreign) == []


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("nodes")])
def test_only_the_nodes_know_comfyui(module):
    assert violations(module, lambda found: not found.own and found.name.split(".")[0] in COMFYUI) == []


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("core.maths")])
def test_maths_runs_on_any_array_library(module):
    """NumPy is the reference and may be named; what else computes comes in with the arrays."""
    libraries = {"jax", "torch", "transformers"}
    assert violations(module, lambda found: not found.own and found.name.split(".")[0] in libraries) == []


def test_the_nodes_need_nothing_of_the_train_extra():
    """What importing the nodes imports in turn; a function may still import lazily what its caller must have."""
    reached, todo, wrong = set(), [name for name in MODULES if name.split(".")[0] == "nodes"], []
    while todo:
        module = todo.pop()
        if module in reached:
            continue
        reached.add(module)
        for found in imports_of(module):
            if found.at_import_time and found.own and found.name in MODULES:
                parts = found.name.split(".")
                todo += [name for n in range(1, len(parts) + 1) if (name := ".".join(parts[:n])) in MODULES]
            elif found.at_import_time and found.name.split(".")[0] in ONLY_IN_TRAIN_EXTRA:
                wrong.append(f"{module}:{found.line} imports {found.name}")
    assert wrong == []


def test_importing_the_pack_imports_nothing_heavy():
    """Under the name ComfyUI would give it, without ComfyUI."""
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('custom_nodes_x_pack', {str(REPOSITORY / '__init__.py')!r})\n"
        "pack = importlib.util.module_from_spec(spec); sys.modules[spec.name] = pack; spec.loader.exec_module(pack)\n"
        "assert callable(pack.comfy_entrypoint) and not hasattr(pack, 'NODE_CLASS_MAPPINGS')\n"
        "heavy = {'torch', 'numpy', 'transformers', 'diffusers', 'comfy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def tracked_files() -> list[Path]:
    """The files git tracks and that are there, relative to the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout.decode()
    return [Path(name) for name in listed.split("\0") if name and (REPOSITORY / name).is_file()]


def test_no_file_names_a_folder_of_somebodys_machine():
    somewhere = re.compile(rb"(?<![\w.~}/])/(?:home|root|Users|work|farm)/\w|\b[A-Z]:\\\\?Users\\")
    found = [
        f"{name}: {match.group().decode()}"
        for name in tracked_files()
        if (content := (REPOSITORY / name).read_bytes()) and b"\0" not in content[:8192]
        for match in somewhere.finditer(content)
    ]
    assert found == []


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the tracked files in a repository of its own, in which tools may write."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in tracked_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, copy / name)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    return copy


def pyproject() -> dict:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def test_what_comfyui_manager_installs_is_what_the_package_needs():
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").split()
    assert lines == pyproject()["project"]["dependencies"]
    assert len(lines) == 1
    assert lines[0].startswith("array-api-compat")


def test_the_version_is_the_same_everywhere():
    import contextual_inversion

    version = pyproject()["project"]["version"]
    assert contextual_inversion.__version__ == version
    assert f"## {version}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def data_files() -> set[str]:
    """Tracked files that the pack reads when it runs."""
    wanted = (*SHIPPED, "js", "workflows", "locales")
    names = {name.as_posix() for name in tracked_files() if name.parts[0] in wanted}
    return names | {"__init__.py"}


def test_a_wheel_holds_all_that_runs_and_nothing_else(checkout, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(tmp_path), "."], cwd=checkout, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name.removeprefix("contextual_inversion/") for name in names if name.startswith("contextual_inversion/")}
    assert data_files() - packed == set()
    assert packed - data_files() == {"pyproject.toml"} & packed
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"contextual_inversion"}


def comfy_cli(checkout: Path, *arguments: str) -> str:
    """Output of a comfy-cli command in the checkout, with its settings elsewhere and nothing reported to anyone."""
    command = Path(sys.executable).with_name("comfy")
    if not command.is_file():
        pytest.skip("comfy-cli is not installed")
    home = {name: str(checkout.parent / "home") for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    ran = subprocess.run(
        [command, "--skip-prompt", *arguments],
        cwd=checkout,
        env={**os.environ, **home, "DO_NOT_TRACK": "1", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def test_the_registry_accepts_the_pack(checkout):
    said = comfy_cli(checkout, "node", "validate")
    assert "validation checks passed" in said
    assert "Warning" not in said


def test_the_registry_archive_holds_what_comfyui_runs(checkout):
    comfy_cli(checkout, "node", "pack")
    names = set(zipfile.ZipFile(checkout / "node.zip").namelist())
    assert data_files() - names == set()
    assert {"pyproject.toml", "requirements.txt", "LICENSE", "README.md"} <= names
    assert not {
        name for name in names if name.split("/")[0] in ("tests", "pretraining", "scripts", "docs", "findings", ".ci")
    }
