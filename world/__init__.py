"""SIMULATED TRUTH: sites, honest journeys, and tampering whose answers are known.

Deterministic by seed; `python -m world` writes a world into `data/`. It never looks at the rules or
the features: what is true must not be defined by what tries to find it.
"""
