"""HOW FAST IT IS: benchmarks that print ratios measured within one run.

Absolute times belong to a machine; the ratio of two ways of doing the same work, measured side by
side, does not. `make bench` runs them.
"""
