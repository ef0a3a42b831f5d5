"""WebDataset tars of annotated images, one row a sample."""

import itertools
import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import fsspec

_MAX_BYTES = 2**29
"""A member of this size is no image but, in a compressed tar, a way to fill the memory."""
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")


def read_tars(tars: list[str]) -> Iterator[dict[str, Any]]:
    """The samples of tars, read once from the beginning to the end.

    Consecutive files that are equal up to the first dot of their name are a sample: an image and a json with an object.
    Files of other types are passed over.

    Args:
        tars: paths, or URLs that fsspec can open.

    Returns:
        The object of the json with `image` (`bytes`, and `path`: tar and file) and `__key__`, the sample's file name
        up to the dot.

    Raises:
        ValueError: a tar or a json cannot be read, or a sample is not complete.
    """
    for tar in tars:
        try:
            with fsspec.open(tar, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as archive:
                yield from _rows(archive, tar)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ValueError(f"{tar}: is not a whole tar file ({error}); download or write it again") from error


def _rows(archive: tarfile.TarFile, tar: str) -> Iterator[dict[str, Any]]:
    files = (member for member in archive if member.isfile())
    for key, members in itertools.groupby(files, _sample_key):
        image, record = None, None
        for member in members:
            extension = member.name.rpartition(".")[2].lower()
            where = f"{tar}: {member.name}"
            if extension == "json":
                record = _parse(_read(archive, member, where), where)
            elif extension in _IMAGES:
                image = {"bytes": _read(archive, member, where), "path": where}
        if image is None and record is None:
            continue
        if image is None or record is None:
            lacks = "json" if record is None else f"image ({', '.join(_IMAGES)})"
            raise ValueError(f"{tar}: {key} has no {lacks} next to its other file; write the tar again")
        yield {**record, "image": image, "__key__": key.rpartition("/")[2]}


def _sample_key(member: tarfile.TarInfo) -> str:
    folder, slash, file = member.name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    if member.size > _MAX_BYTES:
        raise ValueError(
            f"{where}: has {member.size:,} bytes, more than the {_MAX_BYTES:,} that an image or its "
            "json may have; leave it out and write the tar again"
        )
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is not valid JSON ({error}); correct it and write the tar again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: holds a {type(record).__name__}; it must be an object with `objects`")
    return record
