"""Study files that are wrong: settings of a wrong type or size, and YAML that is none or means harm."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.bad_input_template import CONFIG, STUDY, Build, Work, replaced, tables_of, write_study


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Path and value of everything in a study that is no mapping or list, and of empty ones."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))
    else:
        yield path, value


def full_study() -> dict[str, Any]:
    """The study with all sections and every default written out."""
    from equipoise.platform.study.schema import Study

    sections = {
        "search": {"trials": 2, "searcher": "random"},
        "federation": {"sites": {"scheme": "iid", "clients": 3}},
    }
    return Study.model_validate(STUDY | sections).model_dump(mode="json")


def study_keys() -> Iterator[tuple]:
    """Every setting with values of a wrong type or size; unknown keys everywhere."""
    study = full_study()

    def check(changed: dict[str, Any]) -> Build:
        def build(folder: Path, template: Path) -> Work:
            tables_of(folder, template)
            write_study(folder, changed)
            return ["validate", *CONFIG, "--config-only"]

        return build

    for path, value in leaves(study):
        name = ".".join(map(str, path))
        wrong: dict[str, Any] = {"a mapping": {"a": {"b": 1}}}
        if isinstance(value, bool):
            wrong |= {"text": "maybe", "a number": 7}
        elif isinstance(value, int | float):
            wrong |= {"nan": float("nan"), "infinite": float("inf"), "huge": 1e300, "text": "many"}
        for what, bad in wrong.items():
            free = path[-1] in ("event_value", "censored_value") or value is None or value == {}
            yield f"{name}: {what}", check(replaced(study, path, bad)), "answered" if free else "refused"
    sections = {path[:-1] for path, _ in leaves(study) if path and isinstance(path[-1], str)}
    for path in sorted(sections, key=str):
        inner: Any = study
        for key in path:
            inner = inner[key]
        name = ".".join(map(str, path)) or "(top)"
        free = path and path[-1] in ("rename", "where", "omics")
        yield (
            f"{name}: unknown key",
            check(replaced(study, path, inner | {"no_such_key": 1})),
            "answered" if free else "refused",
        )


def yaml_files() -> Iterator[tuple]:
    """Files that are no study, or that mean to harm the reader."""
    good = yaml.safe_dump(STUDY, sort_keys=False)
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    texts: dict[str, str | bytes] = {
        "empty": "",
        "a number": "42",
        "a list": "- 1\n- 2\n",
        "text": "hello",
        "null": "null\n",
        "aliases": bomb + good,
        "an alias in itself": "a: &a [*a]\n" + good,
        "merge in itself": "a: &a {<<: *a}\n" + good,
        "deep lists": "x: " + "[" * 5000 + "]" * 5000 + "\n" + good,
        "deep mappings": "x: " + "{a: " * 3000 + "1" + "}" * 3000,
        "deep blocks": "".join("  " * i + "k:\n" for i in range(2000)),
        "a tag of Python": good + "x: !!python/object/apply:os.system ['true']\n",
        "a tag of Python, name": good + "x: !!python/name:os.system\n",
        "a binary tag": good.replace("name: t", "name: !!binary AAAA"),
        "a set": good.replace("name: t", "name: !!set {a, b}"),
        "a date": good.replace("name: t", "name: 2024-01-01"),
        "a wrong date": good.replace("name: t", "name: 2024-99-99"),
        "a wrong time": good.replace("version: 1", "version: 2024-01-01T99:99:99Z"),
        "a long number": good.replace("version: 1", "version: " + "9" * 6000),
        "a long number in a list": good + "x: [" + "1" * 5000 + "]\n",
        "sixty": good.replace("version: 1", "version: 1:30"),
        "octal": good.replace("version: 1", "version: 0o17"),
        "twice the same key": good + "name: other\n",
        "twice the same section": good + "training: {epochs: 2}\n",
        "tabs": good.replace("  ", "\t"),
        "an open bracket": good + "x: [1, 2\n",
        "an open quote": good + "x: 'abc\n",
        "an unknown alias": good + "x: *nothing\n",
        "two documents": good + "---\n" + good,
        "a directive": "%YAML 9.9\n---\n" + good,
        "null bytes": good.encode() + b"\x00\x00",
        "random bytes": bytes(random.Random(1).randrange(256) for _ in range(4000)),
        "UTF-16 without a mark": good.encode("utf-16-le"),
        "Latin-1": good.replace("name: t", "name: Universität").encode("latin-1"),
        "a zip": b"PK\x03\x04" + bytes(100),
        "a key that is a list": good + "? [a, b]\n: 1\n",
        "a key that is null": good + "~: 1\n",
        "a key that is a number": good + "7: 1\n",
        "a key that is true": good + "yes: 1\n",
        "control characters": good + 'x: "\\x07"\n',
        "a very long line": good + "x: " + "a" * 3_000_000 + "\n",
        "a very long key": good + "k" * 200_000 + ": 1\n",
        "many keys": good + "".join(f"k{i}: 1\n" for i in range(20_000)),
        "version 2": good.replace("version: 1", "version: 2"),
        "version as text": good.replace("version: 1", "version: one"),
        "version true": good.replace("version: 1", "version: true"),
        "a name with a path": good.replace("name: t", "name: ../../t"),
        "a name with a slash": good.replace("name: t", "name: /abc"),
        "an empty name": good.replace("name: t", "name: ''"),
        "a name of dots": good.replace("name: t", "name: '..'"),
        "a name of 400 characters": good.replace("name: t", "name: " + "n" * 400),
        "a name with a line end": good.replace("name: t", 'name: "a\\nb"'),
        "a name with a null": good.replace("name: t", 'name: "a\\0b"'),
    }
    for name, text in texts.items():

        def build(folder: Path, template: Path, text: str | bytes = text) -> Work:
            tables_of(folder, template)
            (folder / "study.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
            return ["validate", *CONFIG]

        yield (
            name,
            build,
            "answered"
            if name in ("a name with a line end", "sixty", "a date", "a wrong date")
            else "refused",
        )
    settings = {
        "no sign": "training.epochs",
        "an empty key": "=3",
        "an empty part": "training..epochs=3",
        "an unknown key": "training.epoch=3",
        "aliases": "training.epochs=&a [*a]",
        "a tag": "name=!!python/name:os.system",
        "deep": "name=" + "[" * 4000,
        "a long number": "training.epochs=" + "9" * 6000,
        "nan": "training.lr=.nan",
        "infinity": "training.lr=.inf",
        "text": "training.lr=fast",
        "a date": "training.lr=2024-99-99",
        "a position": "cohorts.7.role=develop",
        "a negative position": "cohorts.-1.role=external",
        "into a number": "version.a.b=1",
        "into a list": "cohorts.name=B",
        "an open bracket": "training.lr=[1",
        "null": "training.epochs=null",
        "a mapping": "training.lr={a: 1}",
        "the version": "version=3",
        "a null byte": "name=a\x00b",
        "a list for a name": "name=[a]",
    }
    for name, setting in settings.items():

        def set_(folder: Path, template: Path, setting: str = setting) -> Work:
            tables_of(folder, template)
            return ["validate", *CONFIG, "--set", setting, "--config-only"]

        yield f"--set: {name}", set_
