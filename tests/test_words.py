"""Names use the field's words: no class, function, option, file or folder is called by a private noun.

The standard words stand in the glossary of CONTRIBUTING.md. Earlier spellings of study keys that are still read
(``renamed`` mappings), the changelog and ordinary English in sentences are exempt.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

#: Private word → the field's word. A name is split at underscores and capitals; each part is looked up.
PRIVATE = {
    "crew": "worker pool",
    "equip": "start",
    "dismiss": "shutdown",
    "workshop": "client runner",
    "nonce": "request id",
    "shield": "privacy mechanism",
    "enrol": "register",
    "benched": "excluded",
    "tally": "round state",
    "party": "contribution",
    "parties": "contributions",
    "tour": "visiting order",
    "agenda": "schedule",
    "ledger": "audit log, trial recorder",
    "rehearsal": "subsample",
    "rehearse": "subsample",
    "beyond": "subsample",
    "loan": "lease",
    "borrow": "acquire",
    "judged": "evaluated",
    "judge": "evaluate",
    "deal": "assign",
    "dealt": "assigned",
    "giant": "large",
    "sweep": "collect garbage",
    "upkeep": "maintenance",
    "aside": "temporary path",
    "standing": "ranking",
    "wording": "captions",
    "badness": "monitor value",
    "facts": "metadata, result",
    "mend": "fix",
    "mended": "fixed",
    "anew": "again",
    "alike": "equally",
    "perform": "run",
    "gave": "output",
}
#: Words that are private as the whole name of a class, file or folder; an order of columns is ordinary English.
PRIVATE_ALONE = {
    "flight": "in flight",
    "chance": "random source",
    "spent": "timings",
    "order": "train request",
    "orders": "requests",
    "gate": "update validator",
    "open": "no privacy",
    "ground": "fold inputs",
    "material": "trial inputs",
    "prepared": "search context",
    "setting": "parameters",
    "rule": "server aggregation",
    "rules": "aggregation",
    "work": "run context",
    "recorded": "replay",
    "made_by": "fingerprint",
    "whole_files": "atomic_io",
    "hand_on": "pass on",
    "found": "result",
    "own": "local",
    "place": "index",
    "members": "clients",
    "judged": "evaluated",
    "utils": "a name that says what is in it",
    "helpers": "a name that says what is in it",
    "misc": "a name that says what is in it",
    "common": "a name that says what is in it",
    "manager": "a name that says what it does",
}
FOLDERS = ("platform", "jobs", "datasets", "models", ".src/equipoise")


def parts(name: str) -> list[str]:
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def private(name: str, *, noun: bool = False) -> dict[str, str]:
    """Private words in a name, each with what to say; ``noun`` for names of classes, files and folders."""
    whole = name.strip("_").lower()
    alone = {whole: PRIVATE_ALONE[whole]} if noun and whole in PRIVATE_ALONE else {}
    return alone | {part: PRIVATE[part] for part in parts(name) if part in PRIVATE}


def defined(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Line, name and whether it is a class, of every class, function, parameter and class attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name, isinstance(node, ast.ClassDef)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                yield argument.lineno, argument.arg, False
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.lineno, field.target.id, False


def files(root: Path) -> list[Path]:
    found = [file for folder in FOLDERS[:4] for file in sorted((root / folder).rglob("*.py"))]
    return found + sorted((root / FOLDERS[4]).glob("*.py"))


def test_names_contain_no_private_word(root: Path) -> None:
    paths = files(root)
    assert len(paths) > 300
    offences = []
    for file in paths:
        shown = file.relative_to(root)
        for part in (*shown.parts[:-1], shown.stem):
            offences += [f"{shown}: {part}: say {said}" for said in private(part, noun=True).values()]
        for line, name, noun in defined(ast.parse(file.read_text())):
            offences += [f"{shown}:{line}: {name}: say {said}" for said in private(name, noun=noun).values()]
    assert not offences, "\n".join(sorted(set(offences)))


def test_options_of_commands_contain_no_private_word(root: Path) -> None:
    jobs = sorted((root / "jobs").glob("*.py"))
    options = {
        (file.name, option) for file in jobs for option in re.findall(r'"--([a-z-]+)', file.read_text())
    }
    assert len(options) > 10
    offences = {
        (file, option): said for file, option in options if (said := private(option.replace("-", "_")))
    }
    assert not offences


def test_the_check_sees_private_words() -> None:
    assert private("WorkerPool") == {}
    assert set(private("CrewOfWorkers")) == {"crew"}
    assert set(private("_dealt_patients")) == {"dealt"}
    assert set(private("Gate", noun=True)) == {"gate"}
    assert private("gate") == private("gated_attention") == {}
