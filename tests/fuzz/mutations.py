"""Damaged documents: a valid one in which any part is replaced, left out or repeated.

The choices come from hypothesis or from a coverage-guided fuzzer, both as ``draw(low, high)``.
"""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

Draw = Callable[[int, int], int]

# Stands for lists in lists, more than can be read; json.dumps cannot write them.
_DEEP = "@deep@"
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 255, 2**31, 2**32 - 1, -(2**31), 2**63, 10**400),
    *(0.5, -0.0, 1e9, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "0", "h0", "PPPPPPPPPPPPPPPP", "\ud800", "é", "\0", "../../up", "/", "x" * 3000, _DEEP),
    *([], [[]], [0], [None], [1] * 6, [[1e300] * 6], [[float("nan")] * 6], ["a", "b"]),
    *([-1, 25], [4, 6]),
    *({}, {"id": 1}, {"size": [4, 6], "counts": "h0"}, {"size": [0, 6], "counts": [0]}),
    *({"size": [2**31, 2**31], "counts": "h0"}, {"size": [4, 6], "counts": [2**32 - 8, 32]}),
]


def damaged(document: Any, draw: Draw) -> bytes:
    """Return the JSON text of a document with one to three faults, and perhaps one in the text."""
    document = copy.deepcopy(document)
    for _ in range(draw(1, 3)):
        document = _mutate(document, draw)
    text = json.dumps(document).replace(f'"{_DEEP}"', "[" * 100_000 + "]" * 100_000)
    return damaged_text(text.encode(), draw) if draw(0, 5) == 0 else text.encode()


def damaged_text(text: bytes, draw: Draw) -> bytes:
    """Return a text that is cut off, or in which other bytes replace a part."""
    start, length = draw(0, len(text)), draw(0, 8)
    if draw(0, 2) == 0:
        return text[:start]
    inserted = bytes(draw(0, 255) for _ in range(draw(0, 4)))
    return text[:start] + inserted + text[start + length :]


def _mutate(document: Any, draw: Draw) -> Any:
    places = list(_places(document))
    if not places or draw(0, 40) == 0:
        return copy.deepcopy(HOSTILE[draw(0, len(HOSTILE) - 1)])
    container, key = places[draw(0, len(places) - 1)]
    way = draw(0, 5)
    if way == 0:
        del container[key]
    elif way == 1:
        other, other_key = places[draw(0, len(places) - 1)]
        container[key] = copy.deepcopy(other[other_key])
    elif way == 2 and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    elif way == 3 and isinstance(container[key], int):
        container[key] += draw(-2, 2)
    elif way == 4 and isinstance(container[key], str):
        container[key] = damaged_text(container[key].encode("utf-8", "replace"), draw).decode(
            "latin1"
        )
    else:
        container[key] = copy.deepcopy(HOSTILE[draw(0, len(HOSTILE) - 1)])
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each (container, key) of a document."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(part)
