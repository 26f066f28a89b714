"""What the checks of a config end in: messages, collected until all of them are known."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """Something in a config is wrong; the message lists everything that is."""


@dataclass
class Findings:
    """What was found.

    Attributes:
        errors: what has to be mended before anything can start.
        warnings: what is allowed, and likely not meant.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def raise_errors(self) -> None:
        """Raise ConfigError if there are errors, with all of them."""
        if self.errors:
            lines = [f"{len(self.errors)} thing(s) to mend:", *self.errors]
            raise ConfigError("\n  ".join(lines))


def caught(function: Callable[..., Any], *args: Any) -> Iterator[str]:
    """Call a function and yield the message of what it raises for bad input."""
    try:
        function(*args)
    except KeyError as error:
        yield str(error.args[0])
    except (OSError, ValueError) as error:
        yield str(error)
