"""Statuses of slides, as the index, the exclusions and the report name them."""

from __future__ import annotations

from equipoise.datasets.errors import DataError

#: Every final status of a slide, and what it means.
STATUSES = {
    "ok": "features are in the store",
    "missing": "the file is not there",
    "unreadable": "the file is there but cannot be read: truncated, corrupt or an unsupported codec",
    "not_a_slide": "the file is no whole-slide image that OpenSlide knows",
    "no_mpp": "the slide does not say how large its pixels are and no table or study does",
    "mpp_out_of_range": "the stated pixel size lies outside 0.1-5 um/px and cannot be true",
    "upsampling": "the slide is coarser than the resolution asked for",
    "wrong_stain": "fluorescence, grey levels or another stain than the study accepts",
    "no_tissue": "nothing but glass",
    "too_few_tiles": "tissue, but fewer tiles than the study asks for",
    "error": "an unexpected error, kept word for word",
    "quarantined": "the slide killed its worker twice",
}

#: Something went wrong; these count against ``features.max_fail``.
FAILURES = frozenset(
    {
        "missing",
        "unreadable",
        "not_a_slide",
        "no_mpp",
        "mpp_out_of_range",
        "upsampling",
        "wrong_stain",
        "error",
        "quarantined",
    }
)

#: Nothing went wrong, but the slide has nothing to use: excluded with its reason, not counted as failed.
EXCLUSIONS = frozenset({"no_tissue", "too_few_tiles"})


class SlideProblem(DataError):  # noqa: N818 - a status of a slide more than an error of ours
    """A slide that cannot be used.

    Parameters
    ----------
    status
        One of :data:`STATUSES` but ``ok``.
    reason
        One sentence with the offending value.
    where
        Where: file, level or position.
    fix
        What the user can do.

    Raises
    ------
    ValueError
        If the status is unknown: a typing mistake in our own code.
    """

    def __init__(self, status: str, reason: str, *, where: str | None = None, fix: str | None = None) -> None:
        if status not in FAILURES | EXCLUSIONS:
            raise ValueError(f"unknown slide status {status!r}")
        super().__init__(reason, where=where, fix=fix)
        self.status = status

    @property
    def line(self) -> str:
        """Reason, place and remedy on one line, as the index and the exclusions table keep it."""
        parts = [self.what, f"at {self.where}" if self.where else "", f"fix: {self.fix}" if self.fix else ""]
        return "; ".join(" ".join(part.split()) for part in parts if part)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.status, self.what, self.where, self.fix)


def _rebuild(status: str, reason: str, where: str | None, fix: str | None) -> SlideProblem:
    return SlideProblem(status, reason, where=where, fix=fix)
