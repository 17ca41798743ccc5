"""WHAT IS LEARNED: the network, the bundle, its explanations and its registry.

A bundle is everything a verdict needs: weights, features, thresholds, calibration, references. It
loads without pickle, and refuses a feature list or a digest that does not match.
"""
