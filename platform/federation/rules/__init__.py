"""How the updates of sites become one: the weighted mean, rules that a malicious or broken site cannot bend at will,
and the aggregators of task balancing, applied to sites."""
