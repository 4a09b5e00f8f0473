"""The dispatcher: options from a function, figures to --json, and mistakes told in one line."""

import importlib
import inspect
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from contextual_inversion.cli import main as cli


@pytest.fixture
def command(monkeypatch):
    """Makes `contextual-inversion probe` call a function of the test's own."""

    def install(function):
        module = ModuleType("contextual_inversion.cli.probe")
        module.main = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "probe", ("probe", "a command of the test"))

    return install


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_listed_command_exists_and_says_what_it_does(name):
    pytest.importorskip("tyro")
    main = importlib.import_module(f"contextual_inversion.cli.{cli.COMMANDS[name][0]}").main
    assert inspect.getdoc(main)
    own = inspect.signature(main).parameters.get("json")
    assert own is None or own.annotation == "Path | None", "--json is added to every command, or told to it"


def test_the_list_of_commands(capsys):
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


def test_an_unknown_command_is_named(capsys):
    assert cli.main(["trian"]) == 2
    assert "'trian'" in capsys.readouterr().err


def test_options_reach_the_command_and_its_figures_the_file(command, tmp_path):
    seen = {}

    def probe(*, out: Path = Path("out"), seed: int = 0) -> dict[str, object]:
        """Probes.

        Args:
            out: A folder.
            seed: A seed.
        """
        seen.update(out=out, seed=seed)
        return {
            "seconds": np.float32(1.5),
            "count": np.int64(3),
            "losses": np.array([1.0, math.nan]),
            "worst": math.inf,
            "at": out,
            "nested": {"pair": (1, 2)},
        }

    command(probe)
    target = tmp_path / "new" / "figures.json"
    assert cli.main(["probe", "--seed", "7", "--out", "there", "--json", str(target)]) == 0
    assert seen == {"out": Path("there"), "seed": 7}
    assert json.loads(target.read_text()) == {
        "seconds": 1.5,
        "count": 3,
        "losses": [1.0, None],
        "worst": None,
        "at": "there",
        "nested": {"pair": [1, 2]},
    }
    assert [file.name for file in target.parent.iterdir()] == ["figures.json"]


def test_a_missing_package_of_the_extra_says_what_to_install(command, capsys):
    def probe() -> dict[str, object]:
        """Needs what is not there."""
        raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers.models")

    command(probe)
    assert cli.main(["probe"]) == 1
    said = capsys.readouterr().err
    assert "'diffusers'" in said
    assert 'pip install "contextual-inversion[train]"' in said


def test_a_module_missing_for_another_reason_is_not_hidden(command):
    def probe() -> dict[str, object]:
        """Has a mistake in it."""
        raise ModuleNotFoundError("No module named 'typo'", name="typo")

    command(probe)
    with pytest.raises(ModuleNotFoundError, match="typo"):
        cli.main(["probe"])


def test_a_mistake_of_the_user_is_one_line_and_no_file(command, capsys, tmp_path, monkeypatch):
    def probe() -> dict[str, object]:
        """Fails."""
        raise ValueError("there are no pictures in the folder")

    command(probe)
    target = tmp_path / "figures.json"
    monkeypatch.delenv("CONTEXTUAL_INVERSION_TRACEBACK", raising=False)
    assert cli.main(["probe", "--json", str(target)]) == 1
    assert "no pictures" in capsys.readouterr().err
    assert not target.exists()
    monkeypatch.setenv("CONTEXTUAL_INVERSION_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no pictures"):
        cli.main(["probe"])


def test_figures_that_no_file_can_take_are_refused_before_the_work(command, capsys, tmp_path):
    began = []

    def probe() -> dict[str, object]:
        """Works for hours."""
        began.append(True)
        return {}

    command(probe)
    (tmp_path / "file").write_text("")
    for target in (tmp_path, tmp_path / "file" / "figures.json"):
        assert cli.main(["probe", "--json", str(target)]) == 1
        assert f"--json {target.parent if target != tmp_path else target}" in capsys.readouterr().err
    assert not began


def test_of_several_processes_the_first_writes_the_figures(command, tmp_path, monkeypatch):
    def probe() -> dict[str, object]:
        """Measures."""
        return {"value": 2}

    command(probe)
    for rank, written in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["probe", "--json", str(tmp_path / "figures.json")]) == 0
        assert (tmp_path / "figures.json").exists() == written


def test_figures_on_a_full_disk_leave_the_earlier_ones(command, capsys, tmp_path, monkeypatch):
    def probe() -> dict[str, object]:
        """Measures."""
        return {"value": 2}

    command(probe)
    target = tmp_path / "figures.json"
    target.write_text('{"value": 1}')

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert cli.main(["probe", "--json", str(target)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert json.loads(target.read_text()) == {"value": 1}
    assert list(tmp_path.iterdir()) == [target], "nothing half-written stays"


@pytest.mark.parametrize(("said", "shown"), [((), "interrupted"), (("go on with --resume",), "go on with --resume")])
def test_an_interruption_is_one_line_and_an_exit_code_of_its_own(command, capsys, said, shown):
    def probe() -> dict[str, object]:
        """Is stopped."""
        raise KeyboardInterrupt(*said)

    command(probe)
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err.strip() == f"contextual-inversion probe: {shown}"


def test_a_broken_environment_says_what_broke(command, capsys, monkeypatch):
    def probe() -> dict[str, object]:
        """Imports diffusers, as diffusers does where torchvision does not fit PyTorch."""
        try:
            try:
                raise RuntimeError("operator torchvision::nms does not exist")
            except RuntimeError as error:
                raise ModuleNotFoundError("Could not import module 'PreTrainedModel'.") from error
        except ModuleNotFoundError as error:
            raise RuntimeError("Failed to import diffusers.loaders (look up to see its traceback)") from error

    command(probe)
    monkeypatch.delenv("CONTEXTUAL_INVERSION_TRACEBACK", raising=False)
    assert cli.main(["probe"]) == 1
    said = capsys.readouterr().err
    assert "torchvision::nms" in said
    assert "look up" not in said
