"""One module per section of the report; each has ``build(run, params) -> Section | None``."""
