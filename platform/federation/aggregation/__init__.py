"""Server aggregations, which turn the updates of sites into one.

The weighted mean, robust aggregations that bound the influence of a malicious or broken site, and the gradient
aggregators of task balancing, applied to sites.
"""
