"""A command line and the option of its output."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Command(NamedTuple):
    """A command that writes into a folder."""

    main: Callable[[list[str]], int]
    arguments: list[str]
    output: str  # the option of the folder; '' if it is the last argument

    def run(self, output: Path, *more: str) -> int:
        folder = [self.output, str(output)] if self.output else [str(output)]
        return self.main([*self.arguments, *folder, *more])
