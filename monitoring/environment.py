"""Settings are variables `TRAILWATCH_<NAME>`, read in one way by the monitor and the service."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PREFIX = "TRAILWATCH_"


class SettingsError(ValueError):
    """A setting that cannot be used; names the variable, its value and the remedy."""


def given(defaults: DataclassInstance, environment: Mapping[str, str] | None) -> dict[str, Any]:
    """What an environment sets of a dataclass of settings, as the types of their defaults.

    Args:
        defaults: the settings without an environment.
        environment: variables; None for those of this process.

    Raises:
        SettingsError: a value is not of its type.
    """
    variables = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for one in fields(defaults):
        name = PREFIX + one.name.upper()
        text = variables.get(name, "").strip()
        if not text:
            continue
        kind = type(getattr(defaults, one.name))
        try:
            values[one.name] = kind(text)
        except ValueError as error:
            raise SettingsError(f"{name} is {text!r}; give a {kind.__name__}") from error
    return values


def wrong(name: str, value: object, remedy: str) -> SettingsError:
    """The error that says which setting cannot be used, and what to give instead."""
    return SettingsError(f"{PREFIX}{name.upper()} is {value!r}; {remedy}")
