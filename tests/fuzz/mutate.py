"""Small changes that break things: of JSON values and of bytes."""

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 1e-320, 1e308, -1e308, 2**31, -(2**31), 2**63, 2**70, 10**400),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        " ",
        "0",
        "nan",
        "a\0b",
        "\ud800",
        "é" * 3,
        "x" * 5000,
        "\n",
        "🦉",
    ),
    *("../../etc/passwd", "/etc/passwd", "C:\\x", "http://example.invalid/a.jpg", "<script>", "{}", "%s%n"),
    *([], {}, [[]], [None], [1, 2, 3], [1, 2, 3, 4], {"a": 1}, {"0": "a"}, [[1, 2], [3, 4]], ["a", "b"]),
)


def mutate_value(random: Random, value: Any) -> Any:
    """A copy of a JSON value with a few places changed, removed or repeated."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places or random.random() < 0.02:
            return copy.deepcopy(random.choice(HOSTILE))
        # as many changes near the root as in the long lists
        depth = random.choice(sorted({place[2] for place in places}))
        parent, key, _ = random.choice([place for place in places if place[2] == depth])
        action = random.random()
        if action < 0.7:
            parent[key] = copy.deepcopy(random.choice(HOSTILE))
        elif action < 0.85:
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[random.choice(("", "id", "Key", f"{key}s"))] = parent[key]
    return value


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any, int]]:
    """(container, key, depth) of everything inside."""
    if isinstance(value, (dict, list)):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key, depth
            yield from _places(inner, depth + 1)


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Bytes cut off, flipped, inserted, removed or repeated, mostly near the beginning."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at = random.randrange(len(data) if random.random() < 0.5 else min(len(data), 200)) if data else 0
        action = random.randrange(6)
        if action == 0:
            del data[at:]
        elif action == 1:
            data[at : at + 1] = bytes([random.choice((0, 1, 0x7F, 0x80, 0xFF))])
        elif action == 2:
            data[at:at] = random.randbytes(random.randrange(1, 9))
        elif action == 3:
            del data[at : at + random.randrange(1, 64)]
        elif action == 4:
            data[at : at + 4] = random.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1"))
        else:
            data[at:at] = data[at : at + random.randrange(1, 64)]
    return bytes(data)
