"""Search over balancing method, loss weights, architecture and optimisation: the space, the searchers, a trial, its
record, and Ray Tune as the executor. Inner validation is all that a trial ever sees; the records of finished trials
are the only truth about what is done."""
