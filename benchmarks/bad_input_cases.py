"""Cases of :mod:`benchmarks.bad_input`, drawn from seeded generators, one generator a kind.

A case says what must happen: ``refused`` (a documented exit code other than 0 and 5), ``remarked`` (refused, or the
answer has the words that only this input brings about), ``answered`` (anything but an error of ours or a half-written
file: the input may be legitimate, or what it damages may not be needed).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.bad_input_clusters import addresses, cluster_files, submissions
from benchmarks.bad_input_exports import exports, options
from benchmarks.bad_input_files import h5_files, slides
from benchmarks.bad_input_messages import messages
from benchmarks.bad_input_runs import checkpoints, run_folders, stores
from benchmarks.bad_input_studies import study_keys, yaml_files
from benchmarks.bad_input_tables import tables
from benchmarks.bad_input_template import Build


@dataclass(frozen=True)
class Case:
    """One bad input.

    Parameters
    ----------
    kind, name
        Generator and what is wrong.
    build
        Writes the input into the case's folder (first argument; the second is the template) and returns what to run.
    must
        ``refused``, ``remarked`` (by a text that contains ``word``) or ``answered``.
    """

    kind: str
    name: str
    build: Build
    must: Literal["refused", "remarked", "answered"] = "refused"
    word: str = ""

    def as_expected(self, code: int, said: str) -> bool:
        """Whether this answer is what had to happen."""
        if self.must == "answered":
            return True
        if self.must == "remarked" and self.word and self.word.lower() in said.lower():
            return True
        return code in (1, 2, 3, 4)


def cases(kind: str) -> Iterator[Case]:
    """All cases of a kind, the same in every process."""
    for name, build, *must in GENERATORS[kind]():
        yield Case(kind, name, build, *must)


GENERATORS: dict[str, Callable[[], Iterator[tuple]]] = {
    "study_keys": study_keys,
    "yaml": yaml_files,
    "tables": tables,
    "slides": slides,
    "h5": h5_files,
    "stores": stores,
    "run_folders": run_folders,
    "checkpoints": checkpoints,
    "messages": messages,
    "exports": exports,
    "options": options,
    "cluster_files": cluster_files,
    "addresses": addresses,
    "submissions": submissions,
}
KINDS = tuple(GENERATORS)
