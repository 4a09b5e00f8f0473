"""A help text needs nothing that trains: what each command imports before it has read its options."""

import json
import subprocess
import sys

import pytest

from contextual_inversion.cli.main import COMMANDS, TRAIN_EXTRA

HEAVY = TRAIN_EXTRA - {"tyro"}
SHOW = """
import json, sys
from contextual_inversion.cli.main import main
code = 0
try:
    main([{name!r}, "--help"])
except SystemExit as stop:
    code = stop.code
print()
print(json.dumps([code, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_imports_nothing_heavy(name):
    pytest.importorskip("tyro")
    call = [sys.executable, "-c", SHOW.format(name=name)]
    said = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    *shown, last = said.strip().splitlines()
    code, modules = json.loads(last)
    assert code == 0
    assert any("--json" in line for line in shown)
    assert not HEAVY & set(modules)
