"""The seconds of trials: the processor's, so that they hold beside other work."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from contextual_inversion.cli import experiments
from contextual_inversion.cli.experiments.timing import one_thread, stopwatch

OF_A_WHOLE_COMMAND = {"demo.py", "world_report.py"}
"""How long somebody waits for it, which is the clock's."""


@pytest.mark.parametrize(("device", "counted"), [("cpu", "process_time"), ("cuda", "perf_counter")])
def test_seconds_are_the_processors_where_the_model_is_on_it(device, counted, monkeypatch):
    ticks = {name: iter(range(start, 99)) for name, start in (("process_time", 10), ("perf_counter", 50))}
    for name, those in ticks.items():
        monkeypatch.setattr(time, name, lambda those=those: next(those))
    taken = stopwatch(SimpleNamespace(device=torch.device(device)))
    assert [taken(), taken()] == [1, 2]
    other = {"process_time": "perf_counter", "perf_counter": "process_time"}[counted]
    assert next(ticks[other]) in (10, 50)


def test_no_trial_reads_a_clock_of_its_own():
    folder = Path(experiments.__file__).parent
    reading = {file.name for file in folder.glob("*.py") if re.search(r"perf_counter|process_time", file.read_text())}
    assert reading == {"timing.py", *OF_A_WHOLE_COMMAND}


def test_threads_come_back_as_they_were():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
