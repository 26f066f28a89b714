"""Errors and warnings of the checks, collected so that a run can report them all at once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """Something in a config is wrong; the message lists every error."""


@dataclass
class ConfigFaults:
    """Messages of the checks.

    Attributes:
        errors: what has to be fixed before anything can start.
        warnings: what is allowed, but likely not meant.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def raise_errors(self) -> None:
        """Raise ConfigError with all errors, if there are any."""
        if self.errors:
            lines = [f"{len(self.errors)} thing(s) to fix:", *self.errors]
            raise ConfigError("\n  ".join(lines))


def collect_errors(function: Callable[..., Any], *args: Any) -> list[str]:
    """Call a function and return the message that it raises for bad input, or an empty list."""
    try:
        function(*args)
    except KeyError as error:
        return [str(error.args[0])]  # str(error) would add quotation marks
    except (OSError, ValueError) as error:
        return [str(error)]
    return []
