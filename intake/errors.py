"""The one error of this room."""

from __future__ import annotations


class IntakeError(ValueError):
    """Input that cannot be used at all; the message names the value and the remedy."""
