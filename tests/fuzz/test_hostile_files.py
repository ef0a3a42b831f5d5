"""Files made to do harm: to leave their folder, to fill the memory, to run code, to reach the network."""

import ast
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from drmm_hf import DrmmImageProcessor
from drmm_hf.conversion.files import read_released_file
from drmm_hf.data import decode_image, load_detection_dataset, load_streaming_dataset, open_image
from drmm_hf.data.images import LIMIT_VARIABLE, set_pixel_limit
from drmm_hf.data.tar_shards import read_tars
from drmm_hf.evaluation.predict_cli import find_images
from fuzz.annotation_targets import COCO, FILES
from fuzz.image_targets import png_that_claims

PACKAGE = Path(load_detection_dataset.__code__.co_filename).parents[1]
SOURCES = sorted(PACKAGE.rglob("*.py"))
PNG = io.BytesIO()
PIL.Image.new("RGB", (16, 12)).save(PNG, "PNG")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that anything tried to reach; nothing gets out."""
    tried: list[Any] = []

    def refuse(_self: Any, address: Any, *_: Any) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: refuse(None, address))
    return tried


def data_set(root: Path, **first_image: Any) -> Path:
    content = json.loads(json.dumps(COCO))
    content["images"][0] |= first_image
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    for file in FILES:
        (root / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / file).write_bytes(PNG.getvalue())
    return root


def test_urls_of_annotations_are_never_fetched(tmp_path: Path, no_network: list[Any]) -> None:
    urls = {"coco_url": "http://example.invalid/a.png", "flickr_url": "https://example.invalid/a.png"}
    for row in load_detection_dataset(data_set(tmp_path / "a", **urls)).dataset:
        decode_image(row)
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are missing .*http://example.invalid/a.png"):
        load_detection_dataset(data_set(tmp_path / "b", file_name="http://example.invalid/a.png"))
    with pytest.raises(FileNotFoundError, match="no such image file or folder"):
        find_images(["http://example.invalid/a.png"])
    assert no_network == []


@pytest.mark.parametrize("name", ["/etc/hostname", "../../secret.png", "sub/../../a.png", "C:\\a.png", "\\\\host\\a"])
def test_a_file_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"instances_train\.json: images\[0\]\.file_name .*leaves the image folder"):
        load_detection_dataset(data_set(tmp_path, file_name=name))


def tar_of(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """A tar; text as content makes a symbolic link to it."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


RECORD = json.dumps({"objects": {"bbox": [[1, 2, 3, 4]], "category": [0]}, "width": 16, "height": 12}).encode()


def test_members_of_tars_are_not_written_anywhere(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    tar_of(tmp_path / "set/train-0.tar", ("../../escaped.png", PNG.getvalue()), ("../../escaped.json", RECORD))
    before = sorted(tmp_path.rglob("*"))
    (row,) = load_streaming_dataset(tmp_path / "set", id2label={0: "a"})
    assert decode_image(row).size == (16, 12)
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(tmp_path.parent.glob("escaped*"))


def test_links_in_tars_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG.getvalue())
    path = tar_of(tmp_path / "a.tar", ("a.png", str(secret)), ("a.json", RECORD))
    with pytest.raises(ValueError, match=r"a has no image .* next to its other file"):
        list(read_tars([str(path)]))


def test_a_compressed_tar_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drmm_hf.data.tar_shards._MAX_BYTES", 2**20)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = 2**20 + 1
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    assert (tmp_path / "bomb.tar.gz").stat().st_size < 5000
    with pytest.raises(ValueError, match=r"bomb\.tar\.gz: a\.png: has 1,048,577 bytes, more than the 1,048,576"):
        list(read_tars([str(tmp_path / "bomb.tar.gz")]))


@pytest.fixture
def pixel_limit() -> Any:
    before = PIL.Image.MAX_IMAGE_PIXELS
    yield
    PIL.Image.MAX_IMAGE_PIXELS = before


@pytest.mark.usefixtures("pixel_limit")
def test_decompression_bombs_are_refused_up_to_a_limit_that_can_be_raised(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(30_000, 30_000))
    message = r"bomb\.png: has too many pixels.*\(900000000 pixels\).*DRMM_MAX_IMAGE_PIXELS"
    with pytest.raises(ValueError, match=message):
        open_image(path)
    with pytest.raises(ValueError, match=message):
        decode_image({"image": {"bytes": path.read_bytes(), "path": "bomb.png"}})
    PIL.Image.new("L", (40, 30)).save(path)
    set_pixel_limit("1198")
    with pytest.raises(ValueError, match=r"bomb\.png: has too many pixels"):
        open_image(path)
    set_pixel_limit("1200")
    assert open_image(path).size == (40, 30)


@pytest.mark.parametrize("value", ["", "0", "-5", "1e9", "all"])
def test_a_limit_that_is_none(value: str) -> None:
    with pytest.raises(ValueError, match=f"{LIMIT_VARIABLE} is '{value}': give the most pixels"):
        set_pixel_limit(value)


@pytest.mark.slow  # imports everything afresh
def test_the_limit_comes_from_the_environment() -> None:
    code = "import drmm_hf.data, PIL.Image; print(PIL.Image.MAX_IMAGE_PIXELS)"
    environment = {**os.environ, LIMIT_VARIABLE: "400000000", "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == "200000000"


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    PIL.Image.new("RGB", (9, 9)).save(path, "EPS")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript was called"))
    with pytest.raises(ValueError, match=r"picture\.png: is PostScript"):
        open_image(path)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_weights_run_no_code(tmp_path: Path, save: str) -> None:
    path, evil = tmp_path / "weights.pth", {"state_dict": Evil(tmp_path / "made")}
    if save == "torch":
        torch.save(evil, path)
    else:
        path.write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(ValueError, match=r"weights\.pth: (reading it would run code|not a checkpoint|damaged)"):
        read_released_file(path)
    assert not (tmp_path / "made").exists()


def calls(path: Path) -> list[tuple[str, set[str], int]]:
    """(dotted name, keywords with their constants, line) of every call in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            keywords = {f"{k.arg}={k.value.value}" for k in node.keywords if isinstance(k.value, ast.Constant)}
            found.append((ast.unparse(node.func), keywords, node.lineno))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_source_unpickles_evaluates_or_trusts(path: Path) -> None:
    for name, keywords, line in calls(path):
        where = f"{path.name}:{line}: {name}"
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system", "np.load"), where
        assert not name.endswith((".unsafe_load", ".full_load", ".extractall", ".extract")), where
        assert name != "torch.load" or "weights_only=True" in keywords, where
        assert not {"trust_remote_code=True", "allow_pickle=True", "weights_only=False", "shell=True"} & keywords, where


def test_no_message_holds_a_token() -> None:
    """Nothing that logs, prints or raises names a token: the Hub's clients find it themselves."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FormattedValue):
                assert not re.search(r"\b(hf_)?token\b|HF_TOKEN|os\.environ\b", ast.unparse(node)), (
                    f"{path}:{node.lineno}"
                )


@pytest.mark.parametrize("size", [(9, 3), (7, 1), (3, 4), (1, 9)])
def test_pictures_of_few_rows_are_not_taken_for_channels(size: tuple[int, int]) -> None:
    """An array of 3 rows looks as if its channels came first; a picture knows better."""
    picture = PIL.Image.new("RGB", size, (255, 0, 0))
    processor = DrmmImageProcessor(do_resize=False, do_normalize=False, do_pad=False)
    values = processor(picture, return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, size[1], size[0])
    assert values[0].amax((1, 2)).tolist() == [1.0, 0.0, 0.0]
