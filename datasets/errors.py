"""The exception family: what happened, where, and what to do about it.

The base is in the lowest layer so that tables and slides can raise it; ``equipoise.platform.errors`` adds the
errors of studies, resources and federation. Models raise plain ``ValueError`` and ``FileNotFoundError``.
"""

from equipoise.datasets.redaction import masked


class EquipoiseError(Exception):
    """An error meant for a person; credentials in addresses are masked.

    Parameters
    ----------
    what
        What happened, one sentence, with the offending value.
    where
        Place: file, line, column, patient or slide.
    fix
        What to do: a line to write or a command to run.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = masked(what)
        self.where = None if where is None else masked(where)
        self.fix = None if fix is None else masked(fix)
        super().__init__(self.what, self.where, self.fix)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  fix: {self.fix}" if self.fix else text

    def __reduce__(self) -> tuple[object, ...]:
        # Ray sends exceptions between processes; keyword arguments would be lost by the default.
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[EquipoiseError], what: str, where: str | None, fix: str | None) -> EquipoiseError:
    return kind(what, where=where, fix=fix)


class DataError(EquipoiseError):
    """Tables, slides or features that cannot be used as they are (exit code 3)."""

    exit_code = 3


class InUseError(DataError):
    """Somebody else is writing to the folder, and only one may."""


class DataWarning(UserWarning):
    """Data that can be used but deserve a look; filter with the standard ``warnings`` module."""
