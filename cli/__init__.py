"""The command line `contextual-inversion`.

A subcommand is one module in this folder, named in `main.COMMANDS`, with one function

    def main(*, out: Path = Path("out/demo"), seed: int = 0) -> dict[str, object]:
        '''What the command does, in one line.

        Args:
            out: Folder to write to.
            seed: Seed of everything random.
        '''

whose annotated arguments and docstring become the options (tyro), and whose return value is the command's figures.
`--json FILE` is added to every command here and writes those figures; a command writes no JSON report of its own.
What needs the extra `[train]` is imported inside the module as usual: a missing package becomes one sentence that
says what to install. An error the user can mend is raised as ValueError, OSError or RuntimeError and shown as one line.
"""
