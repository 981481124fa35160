"""Whole slides: opening, exact resolution, tissue, tile plans and fingerprints.

Everything here speaks level-0 pixels and micrometres per pixel. A slide that cannot be used raises
:class:`~equipoise.datasets.slides.problems.SlideProblem` with a status and a reason; no function ever returns
made-up pixels in place of unreadable ones.
"""
