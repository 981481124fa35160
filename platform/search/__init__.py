"""Search over balancing method, loss weights, architecture and optimisation: the space, the searchers, a trial, its
record, and Ray Tune as the executor. A trial sees inner validation only; the records of finished trials alone say
which trials are done."""
