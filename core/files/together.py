"""Several files that get their names together, or none of them does: also where the disk fails or the process is killed
between two names."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .leftovers import NAME, claimed, left_in

PLAN = ".json"
# What os.link says on file systems without hard links (FAT, some network mounts).
NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV}


@dataclass(frozen=True)
class Written:
    """A whole file under a `temporary` name, and the `path` that it is to have. `facts` tell it apart by any name."""

    temporary: Path
    path: Path
    replaces: bool
    facts: tuple[int, ...]

    @classmethod
    def of(cls, temporary: Path, path: Path, replaces: bool) -> Written:
        return cls(temporary, path, replaces, _facts(temporary))

    @property
    def published(self) -> bool:
        """Whether it has its name, and not another file."""
        return self.path.exists() and _facts(self.path) == self.facts

    def publish(self) -> None:
        """Raises FileExistsError where the name is taken and nothing may be replaced."""
        if self.replaces:
            os.replace(self.temporary, self.path)
        else:
            rename_to_new(self.temporary, self.path)


def rename_to_new(temporary: Path, path: Path) -> None:
    """Give the file its name, failing if the name is taken: a hard link does both at once, a rename would overwrite."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "there is a file of this name already", str(path)) from None
        os.replace(temporary, path)


def publish_together(files: Sequence[Written]) -> None:
    """Give every file its name. Where one cannot have it, none has, and what was replaced is back. Raises OSError.

    Where there are several, each folder first gets a plan that `clear_leftovers` goes on with after a kill.
    """
    with contextlib.ExitStack() as stack:
        if len(files) > 1:
            for folder in dict.fromkeys(file.path.parent for file in files):
                _write_plan(stack.enter_context(claimed(folder, PLAN)), files)
        before = {file: stack.enter_context(_kept(file.path)) for file in files if file.replaces and len(files) > 1}
        published: list[Written] = []
        try:
            for file in files:
                file.publish()
                published.append(file)
        except BaseException:
            for file in reversed(published):
                _take_back(file, before.get(file))
            raise


def clear_leftovers(folder: Path) -> None:
    """Go on with what a kill has left unfinished in `folder`, and remove what it has left over."""
    with contextlib.suppress(OSError):
        for plan in left_in(folder, PLAN):
            _go_on(_read_plan(plan))
            plan.unlink(missing_ok=True)
        for path in left_in(folder):
            path.unlink(missing_ok=True)


def _write_plan(plan: Path, files: Sequence[Written]) -> None:
    lines = [[str(file.temporary), str(file.path), file.replaces, list(file.facts)] for file in files]
    with plan.open("w", encoding="utf-8") as file:
        json.dump(lines, file)
        file.flush()
        os.fsync(file.fileno())


def _read_plan(plan: Path) -> list[Written]:
    """Nothing of a plan that is not whole: no file had its name before all plans were."""
    try:
        lines = json.loads(plan.read_text(encoding="utf-8"))
        files = [Written(Path(name), Path(path), bool(replaces), tuple(facts)) for name, path, replaces, facts in lines]
    except (OSError, ValueError, TypeError):
        return []
    # A file gets another name in its folder and nothing else, whoever wrote the plan.
    fine = all(file.temporary.parent == file.path.parent and NAME.fullmatch(file.temporary.name) for file in files)
    return files if fine else []


def _go_on(files: Sequence[Written]) -> None:
    """Give their names to those that lack them; where one is gone, take the names of the others away."""
    if not all(file.temporary.exists() or file.published for file in files):
        for file in files:
            if not file.replaces and file.published:
                file.path.unlink()
        return
    for file in files:
        if file.temporary.exists():
            with contextlib.suppress(FileExistsError):
                file.publish()
            file.temporary.unlink(missing_ok=True)


def _facts(path: Path) -> tuple[int, ...]:
    """What stays with a file when it is renamed."""
    facts = path.stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[Path | None]:
    """What is at `path` under a second name, None where there is nothing."""
    if not path.exists():
        yield None
        return
    with claimed(path.parent) as spare:
        spare.unlink()
        try:
            os.link(path, spare)
        except OSError:
            shutil.copyfile(path, spare)
        yield spare


def _take_back(file: Written, before: Path | None) -> None:
    with contextlib.suppress(OSError):
        if before is None:
            file.path.unlink(missing_ok=True)
        else:
            os.replace(before, file.path)
