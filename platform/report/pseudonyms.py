"""Names that must not leave the house: patients, slides, files, machines and users become keyed pseudonyms.

A pseudonym is an HMAC-SHA256 of the name: the same name has the same pseudonym on every page of a run, and nobody
without the key can test a guess. The key is a file of the run folder and never part of a page. Names are replaced
twice: where files are read, so that nothing is shortened before it is replaced, and in everything that a page shows.
"""

import dataclasses
import hashlib
import hmac
import html
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from equipoise.platform.errors import DataError
from equipoise.platform.report.run_files import FILES, RunFiles

#: Where the key is in a run folder.
KEY = "provenance/pseudonym.key"
#: A name of fewer letters, or of digits alone, is replaced only where the text says what it is.
_SHORTEST, _SHORTEST_NUMBER = 4, 7
_PATH = re.compile(r"(?<![\w.<:/])/(?:[\w.@%+~-]+/)+[\w.@%+~-]*|\b[A-Za-z]:\\[^\s\"'<>|]+")
_ADDRESS = re.compile(
    r"\b(?!https?://(?:doi\.org|www\.w3\.org|arxiv\.org|github\.com))[a-z][a-z0-9+]*://[^\s\"'<>)]+"
)
_NAMED = re.compile(r"\b((?:patient|slide|case)s?:? )((?:['\"]?[\w.-]+['\"]?(?:, | and )?)+)")
_DATA = re.compile(
    r"\.(?:csv|tsv|txt|xlsx?|parquet|h5|h5ad|svs|ndpi|mrxs|tiff?|scn|vms|bif|dcm|zarr|ya?ml|json|gz)$", re.I
)
_OWN = {name.partition("/")[0] for name in FILES} | {
    "search",
    "federated",
    "explain",
    "checklists",
    "tb",
    "export",
}
_COLUMNS = {"patient": "P", "patients": "P", "slide": "S", "slides": "S", "path": "F", "file": "F"}
_PEOPLE = {"host", "hostname", "node", "user", "username", "login", "ip", "address", "home"}


class Pseudonyms:
    """The pseudonyms of one run.

    Parameters
    ----------
    key
        Secret of the run.
    names
        Name → what it is: ``P`` a patient, ``S`` a slide, ``F`` a file, ``H`` a machine or a user.
    """

    def __init__(self, key: bytes, names: Mapping[str, str]) -> None:
        self._key = key
        self.names = {name: kind for name, kind in names.items() if name}
        clear = [name for name in self.names if _is_clear(name)]
        forms = {form: name for name in clear for form in (name, html.escape(name), str(Markup.escape(name)))}
        self._forms = forms
        self._pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{_trie(forms)})(?![A-Za-z0-9])") if forms else None

    def of(self, name: str, kind: str) -> str:
        """The pseudonym of a name, such as ``P-7F3KQ2XM``; a file keeps its extension."""
        digest = hmac.new(self._key, f"{kind}\0{name}".encode(), hashlib.sha256).digest()
        letters = "ABCDEFGHJKMNPQRSTVWXYZ23456789"
        number, code = int.from_bytes(digest[:8], "big"), ""
        for _ in range(8):
            number, digit = divmod(number, len(letters))
            code += letters[digit]
        ending = _DATA.search(name) if kind == "F" else None
        return f"{kind}-{code}{ending[0].lower() if ending else ''}"

    def text(self, value: str) -> str:
        """Text with every name replaced."""
        if value.startswith("data:image/"):
            return value
        if self._pattern is not None:
            value = self._pattern.sub(lambda found: self._known(self._forms[found[0]]), value)
        value = _NAMED.sub(self._listed, value)
        value = _ADDRESS.sub(lambda found: self.of(found[0], "F"), value)
        return _PATH.sub(lambda found: self.of(found[0], "F"), value)

    def exact(self, value: Any, kind: str) -> Any:
        """A cell that is one name; numbers and gaps of such a column are names too, or nothing."""
        if value is None or value != value or value == "":
            return value
        return self.of(str(value), self.names.get(str(value), kind))

    def table(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table whose columns of names hold pseudonyms, and whose other texts are searched."""
        changed = {}
        for column in table.columns:
            values = table[column]
            kind = _COLUMNS.get(str(column).lower())
            numbers = pd.api.types.is_numeric_dtype(values)
            if kind and not (numbers and str(column).lower() != "patient"):  # numbers of patients, of slides
                once = {v: self.exact(v, kind) for v in values.dropna().unique()}
                changed[column] = values.astype(object).map(lambda v, once=once: once.get(v, v))
            elif not numbers and not pd.api.types.is_bool_dtype(values):
                changed[column] = values.astype(object).map(self.anything)
        renamed = {c: self._known(c) for c in table.columns if c in self.names}
        return table.assign(**changed).rename(columns=renamed)

    def anything(self, value: Any) -> Any:
        """Any value of a file or a page with its names replaced: texts, tables, mappings, records, figures."""
        if isinstance(value, Markup):
            return Markup(self.text(str(value)))  # noqa: S704, pseudonyms are letters, digits and dashes
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, pd.DataFrame):
            return self.table(value)
        if isinstance(value, pd.Series):
            return value.map(self.anything) if value.dtype == object else value
        if isinstance(value, np.ndarray):
            return [self.anything(v) for v in value.tolist()] if value.dtype == object else value
        if isinstance(value, Mapping):
            return {self.anything(k): self.anything(v) for k, v in value.items()}
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(self.anything(v) for v in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            return dataclasses.replace(value, **{name: self.anything(held) for name, held in fields.items()})
        return value

    def _known(self, name: str) -> str:
        return self.of(name, self.names[name])

    def _listed(self, found: re.Match[str]) -> str:
        """``patients 3, 17 and 20``: short names after the word that says what they are."""
        names = re.sub(
            r"[\w.-]*[\w-]", lambda word: self._known(word[0]) if word[0] in self.names else word[0], found[2]
        )
        return found[1] + names


class PseudonymousRun(RunFiles):
    """A run folder that is read through pseudonyms."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        plain = RunFiles(folder)
        self.pseudonyms = Pseudonyms(read_key(folder), names_of(plain))
        self._synthetic = plain.synthetic

    @property
    def synthetic(self) -> bool:
        """Whether any patient is synthetic, which the barcodes say that this page leaves out."""
        return self._synthetic

    def _read(self, name: str, reader: Any) -> Any:
        value = super()._read(name, reader)
        if name == "manifest/splits.json":
            return _each_text(value, lambda patient: self.pseudonyms.exact(patient, "P"))
        return self.pseudonyms.anything(value)


def read_key(folder: Path) -> bytes:
    """The key of a run; the first call makes it, readable for its owner only.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    path = Path(folder) / KEY
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise DataError(
            "the key of the pseudonyms is damaged",
            where=str(path),
            fix="restore the file, or delete it to start new pseudonyms",
        )
    return bytes.fromhex(text)


def names_of(run: RunFiles) -> dict[str, str]:
    """Every name of a run that identifies a patient, a slide, a file, a machine or a user, with its kind."""
    names: dict[str, str] = {}
    for value in _texts_of([run.study, run.inputs, run.environment.get("command"), run.status]):
        for word in [value, *re.split(r"[\s=]+", value)]:
            if _is_file(word):
                _add(names, word, "F")
    for key, value in _people(run.environment):
        if key in _PEOPLE:
            _add(names, value, "H")
    tables = [run.slides, run.exclusions, run.patients, run.predictions]
    for table in tables:
        if table is None:
            continue
        for column, kind in (("path", "F"), ("slide", "S"), ("patient", "P")):
            if column in table:
                for value in table[column].dropna().unique():
                    if str(value):
                        names[str(value)] = kind
    for slide in [name for name, kind in names.items() if kind == "S"]:
        names.setdefault(Path(slide).stem, "S")
    for path in run.thumbnails:
        names.setdefault(path.stem, "S")
    for fold in run.splits:
        for part in ("train", "val", "test"):
            names |= {str(patient): "P" for patient in fold[part]}
    return names


def _add(names: dict[str, str], name: str, kind: str) -> None:
    names.setdefault(name, kind)
    if kind == "F" and (base := re.split(r"[/\\]", name.rstrip("/\\"))[-1]) != name and _DATA.search(base):
        names.setdefault(base, kind)


def _is_file(word: str) -> bool:
    """Whether a text is a path of the user's; files of the run folder, options and sentences are not."""
    if not word or len(word) > 400 or "\n" in word or word.startswith(("-", "http://www.w3.org")):
        return False
    if word.partition("/")[0] in _OWN and ("/" in word or word == "status.json"):
        return False
    if word.startswith(("/", "~/", "./", "../")) or "://" in word or re.match(r"^[A-Za-z]:\\", word):
        return len(word) > 3
    return (
        bool(_DATA.search(word)) and " " not in word.strip()[:1] and word not in ("study.yaml", "status.json")
    )


def _is_clear(name: str) -> bool:
    """Whether a name can be told apart from other words and numbers."""
    return len(name) >= (_SHORTEST_NUMBER if name.replace(".", "").isdigit() else _SHORTEST)


def _texts_of(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, held in value.items():
            yield from _texts_of(key)
            yield from _texts_of(held)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _texts_of(held)


def _people(value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, held in value.items():
            if isinstance(held, str):
                yield str(key).lower(), held
            else:
                yield from _people(held)
    elif isinstance(value, list):
        for held in value:
            yield from _people(held)


def _each_text(value: Any, change: Any) -> Any:
    """Lists of patients in nested records."""
    if isinstance(value, Mapping):
        parts = ("train", "val", "test")
        return {
            k: [change(p) for p in v] if k in parts and isinstance(v, list) else _each_text(v, change)
            for k, v in value.items()
        }
    return [_each_text(v, change) for v in value] if isinstance(value, list) else value


def _trie(words: Iterable[str]) -> str:
    """A regular expression for many words that looks at each letter once; longer words win."""
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}
    return _expression(root)


def _expression(node: dict[str, Any]) -> str:
    # Chains of single letters are one piece, so that the recursion is as deep as words branch.
    pieces = []
    for letter, below in sorted(node.items()):
        if not letter:
            continue
        chain = re.escape(letter)
        while len(below) == 1 and "" not in below:
            ((following, below),) = below.items()
            chain += re.escape(following)
        rest = _expression(below)
        pieces.append(chain + rest)
    if not pieces:
        return ""
    joined = pieces[0] if len(pieces) == 1 else "|".join(pieces)
    return f"(?:{joined})?" if "" in node else f"(?:{joined})"
