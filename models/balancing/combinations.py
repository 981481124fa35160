"""Which loss weighting goes with which gradient aggregator, and why others do not. Light: no torch."""

#: Weightings that are a complete method from loss to update.
WHOLE_OBJECTIVES = {
    "famo": "famo measures the effect of its own update on the losses, which an aggregator would distort",
    "gls": "gls is one scalar objective, the geometric mean of the losses, and has one gradient",
    "stch": "stch is one scalar objective, the smooth maximum of the losses, and has one gradient",
}

#: Aggregators that weigh tasks themselves, and the weightings they can stand beside equal.
WEIGHING_AGGREGATORS = {
    "db_mtl": (
        (),
        "db_mtl takes logarithms of losses and equalises norms of gradients, so that a weight cancels",
    ),
    "excess_mtl": (("static",), "excess_mtl learns the weights of the losses itself"),
    "sdmgrad": (
        ("static",),
        "sdmgrad chooses its weights on further batches, where losses are not weighted again",
    ),
}

#: Aggregators that do not see the norm of a task's gradient, and the weightings they can stand beside equal.
SCALE_INVARIANT = {
    "imtl_g": ("imtl_l",),  # IMTL as published is both
    "nash_mtl": (),
}


def refusal(weighting: str, aggregation: str) -> str | None:
    """Why the two cannot be combined; None if they can, or one of them is not known here."""
    if aggregation == "none":
        return None
    if weighting in WHOLE_OBJECTIVES:
        return f"{WHOLE_OBJECTIVES[weighting]}: use aggregation none, not {aggregation}"
    if weighting == "equal":
        return None
    if aggregation in WEIGHING_AGGREGATORS:
        allowed, reason = WEIGHING_AGGREGATORS[aggregation]
        if weighting not in allowed:
            return f"{reason}: use weighting {' or '.join(('equal', *allowed))}, not {weighting}"
    if aggregation in SCALE_INVARIANT and weighting not in SCALE_INVARIANT[aggregation]:
        allowed = ("equal", *SCALE_INVARIANT[aggregation])
        task = "the norms it brings in step are" if weighting == "gradnorm" else "weights of the losses are"
        return (
            f"{aggregation} does not depend on the norms of gradients, so that {task} lost: "
            f"use weighting {' or '.join(allowed)}, not {weighting}"
        )
    return None
