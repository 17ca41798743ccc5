"""Tests of every room; none of them fails because the machine is slow."""

from contextlib import suppress

with suppress(ModuleNotFoundError):  # Airflow's environment is without it
    from hypothesis import settings

    settings.register_profile("trailwatch", deadline=None)
    settings.load_profile("trailwatch")
