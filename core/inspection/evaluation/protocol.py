"""The DreamBench protocol as folders: subjects x prompts x pictures (METHODS.md 2.7), and its bad input.

DATASET/classes.txt                 folder, class name, kind        dog6, dog, animate
DATASET/SUBJECT/*.png               reference pictures
GENERATED/SUBJECT/PP/*.png          pictures of prompt PP, counted from 00
GENERATED/prompts.txt               the prompts, where they are not the built-in ones
MASKS/SUBJECT/references/*.png      masks, named like the references
MASKS/SUBJECT/PP/*.png              masks, named like the pictures
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...concept import PLACEHOLDER
from ...files.pictures import picture_files
from ...prompts.parse import parse_prompts, prompts_by_category
from ...prompts.sets import DATA

CLASSES, PROMPTS, REFERENCES = "classes.txt", "prompts.txt", "references"
KINDS = {"animate": "animate", "inanimate": "inanimate", "live": "animate", "object": "inanimate"}
"""Third column of classes.txt, with DreamBench's own words for it -> file of built-in prompts."""
PROTOCOLS = {"dreambench": (Path(__file__).parent / "prompts", "{}.txt"), "core": (DATA, "evaluation_{}.txt")}
"""Built-in prompts, where they are: 25 in DreamBench's shape (METHODS.md 2.7), or CoRe's 20 (METHODS.md 1.9)."""


class ProtocolError(ValueError):
    """A dataset or a folder of pictures that does not fit the protocol; the message names every mistake."""


@dataclass(frozen=True)
class Subject:
    """One thing to evaluate: its folder's name, the ordinary word for it, its kind ("" if not said), its pictures."""

    name: str
    class_name: str
    kind: str
    references: tuple[Path, ...]


@dataclass(frozen=True)
class ProtocolPrompt:
    """A template with one "{}" and its category ("place", "outfit", ...; "" if the file has none)."""

    template: str
    category: str


@dataclass(frozen=True)
class Cell:
    """One prompt of one subject: the unit of work, and of what is kept when an evaluation is interrupted."""

    subject: Subject
    number: int
    prompt: ProtocolPrompt

    @property
    def place(self) -> str:
        """SUBJECT/PP, where its pictures are."""
        return f"{self.subject.name}/{self.number:02d}"

    @property
    def caption(self) -> str:
        """The prompt with the plain class name (METHODS.md 2.7)."""
        return self.prompt.template.replace(PLACEHOLDER, self.subject.class_name)


def read_dataset(folder: Path, only: Sequence[str] = ()) -> tuple[Subject, ...]:
    """The subjects of a dataset folder in the order of its `classes.txt`, or those named in `only`.

    Raises FileNotFoundError without a `classes.txt`, ProtocolError with every line that is wrong and every subject
    without pictures.
    """
    path = folder / CLASSES
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {CLASSES}; write one line a subject: its folder, class name, animate or inanimate "
            "(dog6, dog, animate)"
        )
    problems, subjects = [], {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = [field.strip() for field in line.partition("#")[0].split(",")]
        if not any(fields) or fields[0] == "subject_name":  # DreamBench's own heading
            continue
        problem = _line_problem(fields, subjects)
        if problem:
            problems.append(f"line {number}: {problem}")
            continue
        name, class_name, kind = (*fields, "")[:3]
        subjects[name] = Subject(name, class_name, KINDS.get(kind, ""), tuple(picture_files(folder / name)))
    unknown = [name for name in only if name not in subjects]
    chosen = tuple(subject for name, subject in subjects.items() if not only or name in only)
    problems += [f"no subject {name!r}" for name in unknown]
    problems += [f"no pictures in {subject.name}/" for subject in chosen if not subject.references]
    if not subjects and not problems:
        problems.append("it names no subject")
    if problems:
        raise ProtocolError("\n  ".join([f"{CLASSES} of {folder.name} cannot be used:", *problems]))
    return chosen


def read_prompts(path: Path) -> tuple[ProtocolPrompt, ...]:
    """The prompts of a text file, one a line with one "{}", under headings such as `# place`.

    Raises FileNotFoundError, and PromptFileError that names the lines that cannot be used.
    """
    text = path.read_text(encoding="utf-8-sig")
    parse_prompts(text, path.name)
    return tuple(
        ProtocolPrompt(template, category)
        for category, templates in prompts_by_category(text).items()
        for template in templates
    )


def built_in_prompts(kind: str, protocol: str = "dreambench") -> tuple[ProtocolPrompt, ...]:
    """The prompts of one of `PROTOCOLS` for a subject that is "animate" or "inanimate"."""
    folder, name = PROTOCOLS[protocol]
    return read_prompts(folder / name.format(kind))


def cells_of(subjects: Sequence[Subject], prompts: Sequence[ProtocolPrompt] | str = "dreambench") -> list[Cell]:
    """Every prompt of every subject: `prompts` for all, or those of one of `PROTOCOLS` for each subject's kind.

    Raises ProtocolError where built-in ones are wanted and a subject has no kind.
    """
    silent = [subject.name for subject in subjects if not subject.kind]
    built_in = isinstance(prompts, str)
    if built_in and silent:
        raise ProtocolError(
            f"say in {CLASSES} whether these are animate or inanimate, or give your own prompts: {', '.join(silent)}"
        )
    return [
        Cell(subject, number, prompt)
        for subject in subjects
        for number, prompt in enumerate(built_in_prompts(subject.kind, prompts) if built_in else prompts)
    ]


def cells_without_pictures(cells: Sequence[Cell], generated: Path) -> list[str]:
    """The places (SUBJECT/PP) of the cells for which there is no picture."""
    return [cell.place for cell in cells if not picture_files(generated / cell.place)]


def _line_problem(fields: list[str], subjects: dict[str, Subject]) -> str | None:
    if len(fields) not in (2, 3) or not all(fields[:2]):
        return f"wanted is 'folder, class name, kind', not {', '.join(fields)!r}"
    name = fields[0]
    if name in (".", "..") or "/" in name or "\\" in name:
        return f"{name!r} is not the name of a folder in the dataset"
    if name in subjects:
        return f"{name!r} is named twice"
    if len(fields) == 3 and fields[2] not in KINDS:
        return f"the kind is one of {', '.join(KINDS)}, not {fields[2]!r}"
    return None
