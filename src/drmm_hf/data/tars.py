"""WebDataset tars of annotated images, one row a sample."""

import itertools
import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import fsspec

MAX_MEMBER_BYTES = 2**29
"""A file of this size in a tar is no image but, in a compressed tar, a way to fill the memory."""
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")


class TarError(ValueError):
    """Its message names the tar."""


def read_tars(tars: list[str]) -> Iterator[dict[str, Any]]:
    """The samples of WebDataset tars, read once from the beginning to the end.

    Consecutive files that are equal up to the first dot of their name are a sample: an image and a json with an object.
    Files of other types are passed over.

    Args:
        tars: paths, or URLs that fsspec can open.

    Returns:
        The object of the json with `image` (`bytes`, and `path`: tar and file) and `__key__`, the sample's file name
        up to the dot.

    Raises:
        TarError: a tar or a json cannot be read, or a sample is not complete.
    """
    for tar in tars:
        try:
            with fsspec.open(tar, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as archive:
                members = (member for member in archive if member.isfile())
                for key, files in itertools.groupby(members, _sample_key):
                    sample: dict[str, Any] = {}
                    for member in files:
                        sample |= _read_member(archive, member, f"{tar}: {member.name}")
                    if len(sample) == 1:
                        raise TarError(f"{tar}: {key} has only one of an image and its json; write the tar again")
                    if sample:
                        yield {**sample["json"], "image": sample["image"], "__key__": key.rpartition("/")[2]}
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise TarError(f"{tar}: is not a whole tar file ({error}); download or write it again") from error


def _sample_key(member: tarfile.TarInfo) -> str:
    folder, slash, file = member.name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> dict[str, Any]:
    """The image or the json of a sample; nothing for a file of another type."""
    extension = member.name.rpartition(".")[2].lower()
    if extension != "json" and extension not in _IMAGES:
        return {}
    if member.size > MAX_MEMBER_BYTES:
        raise TarError(f"{where}: has {member.size:,} bytes, more than the {MAX_MEMBER_BYTES:,} allowed; leave it out")
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    if extension != "json":
        return {"image": {"bytes": file.read(), "path": where}}
    try:
        record = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise TarError(f"{where}: is not valid JSON ({error}); correct it and write the tar again") from error
    if not isinstance(record, dict):
        raise TarError(f"{where}: holds a {type(record).__name__}; it must be an object with `objects`")
    return {"json": record}
