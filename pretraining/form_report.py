"""How well a form of the model draws: `python -m contextual_inversion.pretraining.form_report --out DIR`.

It is `contextual-inversion world-report` in a process of that form, whichever form this one has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from ..cli import main as command
from ..core.form import CANDIDATE, FORMS, VARIABLE


def main(arguments: list[str] | None = None) -> None:
    """Print the report as JSON and write it into `<form>.json` beside the sheet `<form>.png`.

    Raises subprocess.CalledProcessError where the report fails, which has said why then.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", choices=FORMS, default=CANDIDATE)
    parser.add_argument("--out", type=Path, required=True, help="where report and sheet go")
    parser.add_argument("--n", type=int, default=200, help="held-out captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    report, sheet = (options.out / f"{options.form}.{kind}" for kind in ("json", "png"))
    asked = ["world-report", "--n", str(options.n), "--seed", str(options.seed)]
    call = [sys.executable, "-m", command.__name__, *asked, "--sheet", str(sheet), "--json", str(report)]
    threads = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
    # The JSON alone goes to the standard output, as one would pipe it on.
    subprocess.run(call, env={**os.environ, VARIABLE: options.form, **threads}, stdout=sys.stderr, check=True)
    print(json.dumps({"form": options.form, **json.loads(report.read_text(encoding="utf-8"))}, indent=1))


if __name__ == "__main__":
    main()
