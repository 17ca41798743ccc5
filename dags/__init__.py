"""WHEN IT RUNS: the schedules, in an environment of their own that knows no other room.

Tasks are rendered from `dvc.yaml` and call the ML environment by path.
"""
