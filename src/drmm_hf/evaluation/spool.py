"""Results kept on the disk as they come, so that memory stays small and an interrupted run can go on.

A folder with `settings.json` and one `part-RANK.jsonl` for each process. A batch is a line that describes it, with the
number of bytes that follow, and then a line for each result. A batch that was cut off by the end of the process does
not count.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ..files import read_json, to_json, write_json, writing


class ResultsSpool:
    """What was predicted so far, batch by batch.

    Args:
        folder: made by `begin`.
        part: of this process; no two may write the same.
    """

    def __init__(self, folder: str | PathLike[str], part: int = 0) -> None:
        self.folder, self.part = Path(folder), part

    @classmethod
    def begin(cls, folder: str | PathLike[str], settings: Mapping[str, Any], resume: bool) -> "ResultsSpool":
        """An empty folder, or with `resume` what an interrupted run with the same settings left, if there was one.

        Raises:
            ValueError: the interrupted run had other settings; the message names the first.
        """
        spool = cls(folder)
        description = spool.folder / "settings.json"
        if resume and description.is_file():
            before = read_json(description)
            before = before if isinstance(before, Mapping) else {}
            for field, now in json.loads(json.dumps(settings)).items():
                if before.get(field) != now:
                    raise ValueError(
                        f"{description}: field {field} is {before.get(field)!r}, now {now!r}; leave out --resume to "
                        "begin anew"
                    )
            for path in spool._parts():
                # What was cut off would spoil the batch that is appended next.
                whole = max((end for *_, end in _batches(path)), default=0)
                with path.open("r+b") as file:
                    file.truncate(whole)
            return spool
        shutil.rmtree(spool.folder, ignore_errors=True)
        spool.folder.mkdir(parents=True)
        write_json(description, dict(settings))
        return spool

    def finished(self) -> set[int]:
        """Numbers of the batches that are there."""
        return {entry["batch"] for path in self._parts() for entry, _, _ in _batches(path)}

    def append(self, batch: int, results: Sequence[Mapping[str, Any]], **facts: Any) -> None:
        """Write the results of a batch, and whatever else is to be known of it: all plain values."""
        lines = "".join(to_json(result) + "\n" for result in results)
        # All of it is ASCII, so that a character is a byte.
        described = {"batch": batch, "count": len(results), "bytes": len(lines), **facts}
        path = self.folder / f"part-{self.part}.jsonl"
        with writing(path), path.open("a", encoding="ascii") as file:
            file.write(to_json(described) + "\n" + lines)

    def entries(self) -> list[dict[str, Any]]:
        """Of each batch, by their numbers: `batch`, `count` of its results, and its facts."""
        return [entry for entry, _, _ in self._sorted()]

    def result_lines(self) -> Iterator[str]:
        """All results as JSON text, in the order of the batches, one batch in memory at a time."""
        for entry, path, start in self._sorted():
            with path.open("rb") as file:
                file.seek(start)
                yield from file.read(entry["bytes"]).decode("ascii").splitlines()

    def remove(self) -> None:
        """Remove the folder, when what was made of it is on the disk."""
        shutil.rmtree(self.folder)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.jsonl"))

    def _sorted(self) -> list[tuple[dict[str, Any], Path, int]]:
        places = [(entry, path, start) for path in self._parts() for entry, start, _ in _batches(path)]
        return sorted(places, key=lambda place: place[0]["batch"])


def _batches(path: Path) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Description of each whole batch of a part, and where its results begin and end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while (line := file.readline()).endswith(b"\n"):
            entry, start = json.loads(line), file.tell()
            end = start + entry["bytes"]
            if end > size:
                return
            yield entry, start, end
            file.seek(end)
