"""Small changes that break things: of JSON values, of text and of bytes."""

import copy
import json
from random import Random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.0, 1e-320, 1e308, -1e308, 2**31, -(2**31), 2**63, 2**70, 10**400),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "0", "1", "nan", "a\0b", "\ud800", "é" * 3, "x" * 5000),
    *("../../etc/passwd", "/etc/passwd", "C:\\x", "http://example.invalid/a.jpg", "<script>", "{}", "%s%n", "\n", "🦉"),
    *([], {}, [[]], [None], [1, 2, 3], [1, 2, 3, 4], {"a": 1}, {"0": "a"}, [[1, 2], [3, 4]], ["a", "b"]),
)


def mutate_value(random: Random, value: Any, changes: int | None = None) -> Any:
    """A copy of a JSON value with a few places changed, removed, repeated or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3)) if changes is None else changes):
        value = _mutate_once(random, value)
    return value


def _mutate_once(random: Random, value: Any) -> Any:
    places = list(_places(value))
    if not places or random.random() < 0.02:
        return copy.deepcopy(random.choice(HOSTILE))
    # as many changes near the root as in the long lists
    depth = random.choice(sorted({depth for _, _, depth in places}))
    parent, key, _ = random.choice([place for place in places if place[2] == depth])
    action = random.random()
    if action < 0.6:
        parent[key] = copy.deepcopy(random.choice(HOSTILE))
    elif action < 0.75:
        del parent[key]
    elif action < 0.85:
        if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[random.choice(("", "id", "Key", f"{key}s"))] = parent[key]
    elif action < 0.95:
        other, other_key, _ = random.choice(places)
        parent[key] = copy.deepcopy(other[other_key])
    else:
        for _ in range(random.choice((1, 5, 50))):
            parent[key] = [parent[key]]
    return value


def _places(value: Any, depth: int = 0) -> Any:
    """(container, key, depth) of everything inside."""
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    else:
        return
    for key, inner in entries:
        yield value, key, depth
        yield from _places(inner, depth + 1)


def mutate_json(random: Random, value: Any) -> str:
    """JSON text of a changed value; now and then the text itself is damaged."""
    text = json.dumps(mutate_value(random, value))
    if random.random() < 0.1:
        text = mutate_bytes(random, text.encode()).decode("latin-1")
    if random.random() < 0.01:
        text = "[" * 100_000 if random.random() < 0.5 else '{"images":' * 5000
    return text


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Bytes cut off, flipped, inserted, removed, repeated or zeroed, mostly near the beginning."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        at = random.randrange(len(data)) if random.random() < 0.5 else random.randrange(min(len(data), 200))
        action = random.randrange(7)
        if action == 0:
            del data[at:]
        elif action == 1:
            data[at] ^= 1 << random.randrange(8)
        elif action == 2:
            data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif action == 3:
            data[at:at] = random.randbytes(random.randrange(1, 9))
        elif action == 4:
            del data[at : at + random.randrange(1, 64)]
        elif action == 5:
            data[at : at + 4] = random.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1"))
        else:
            data[at:at] = data[at : at + random.randrange(1, 64)]
    return bytes(data)
