"""Files made to do harm: to leave their folder, to fill the memory, to run code, to reach the network."""

import ast
import contextlib
import io
import json
import re
import runpy
import socket
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

import drmm_hf
from drmm_hf.backbone import read_weights
from drmm_hf.cli import main
from drmm_hf.data import decode_image, load_detection_dataset, load_streaming_dataset, open_image
from fuzz.inputs import COCO, changed, write, write_coco, write_model

PACKAGE = Path(drmm_hf.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
RECORD = json.dumps({"objects": {"bbox": [[1, 2, 3, 4]], "category": [0]}, "width": 16, "height": 12}).encode()


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 12)).save(buffer, "PNG")
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A png of a few bytes whose header gives this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


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


def test_urls_in_files_are_never_fetched(tmp_path: Path, no_network: list[Any], capsys: pytest.CaptureFixture) -> None:
    for name in ("a", "b", "model"):
        (tmp_path / name).mkdir()
    for row in load_detection_dataset(write_coco(tmp_path / "a")).dataset:  # each has a `coco_url`
        decode_image(row)
    url = "http://example.invalid/other.png"  # a.png would be the one in the folder
    with pytest.raises(FileNotFoundError, match=re.escape(url)):
        load_detection_dataset(write_coco(tmp_path / "b", changed(COCO, "images", 0, "file_name", to=url)))
    assert no_network == []
    model = str(write_model(tmp_path / "model"))  # an address that the user gives is another thing
    assert main(["predict", "--model", model, url, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert "example.invalid/other.png" in capsys.readouterr().err
    assert no_network


@pytest.mark.parametrize("name", ["/etc/hostname", "../../secret.png", "sub/../../secret.png", "C:\\b", "\\\\host\\a"])
def test_a_file_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    with pytest.raises(FileNotFoundError, match=r"instances_train\.json: .* images\[0\]\.file_name"):
        load_detection_dataset(write_coco(tmp_path / "set", changed(COCO, "images", 0, "file_name", to=name)))


def tar_of(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """A tar; text as content makes a symbolic link to it."""
    path.parent.mkdir(exist_ok=True)
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


def read_tars(folder: Path) -> list[Any]:
    return list(load_streaming_dataset(folder / "set", id2label={0: "a"}))


def test_members_of_tars_are_not_written_anywhere(tmp_path: Path) -> None:
    tar_of(tmp_path / "set/train-0.tar", ("../../escaped.png", png()), ("../../escaped.json", RECORD))
    before = sorted(tmp_path.rglob("*"))
    (row,) = read_tars(tmp_path)
    assert decode_image(row).size == (16, 12)
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(tmp_path.parent.glob("escaped*"))


def test_links_in_tars_are_not_followed(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.png", png())
    tar_of(tmp_path / "set/train-0.tar", ("a.png", str(secret)), ("a.json", RECORD))
    with pytest.raises(ValueError, match="set"):
        read_tars(tmp_path)


@pytest.mark.parametrize("record", [b"", b"[" * 100_000, RECORD.replace(b"[0]", b"[9999999999999999999999]")])
def test_damaged_records_of_tars_are_named(record: bytes, tmp_path: Path) -> None:
    tar_of(tmp_path / "set/train-0.tar", ("a.png", png()), ("a.json", record))
    with pytest.raises(ValueError, match="set"):
        read_tars(tmp_path)


def test_weights_that_unfold_to_more_than_the_file_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(100_000)}, tmp_path / "plain.pth")
    kinds = {"mode": "w", "compression": zipfile.ZIP_DEFLATED}
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", **kinds) as packed:
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    assert read_weights(tmp_path / "plain.pth")["weight"].shape == (100_000,)
    with pytest.raises(ValueError, match=r"bomb\.pth"):
        read_weights(tmp_path / "bomb.pth")


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bomb.png", png_that_claims(30_000, 30_000))
    with pytest.raises(ValueError, match=r"bomb\.png.*DRMM_MAX_IMAGE_PIXELS"):
        open_image(path)
    with pytest.raises(ValueError, match=r"bomb\.png.*DRMM_MAX_IMAGE_PIXELS"):
        decode_image({"image": {"bytes": path.read_bytes(), "path": "bomb.png"}})


@pytest.mark.parametrize(("limit", "fine"), [("1198", False), ("1200", True), ("-5", False)])
def test_the_limit_of_pixels_comes_from_the_environment(limit: str, fine: bool, tmp_path: Path, monkeypatch) -> None:
    """Which is read once, when the module that opens images is imported: here it runs once more."""
    PIL.Image.new("L", (40, 30)).save(tmp_path / "picture.png")
    monkeypatch.setenv("DRMM_MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", PIL.Image.MAX_IMAGE_PIXELS)  # it is set back
    monkeypatch.delitem(sys.modules, "drmm_hf.data.images")
    with contextlib.nullcontext() if fine else pytest.raises(ValueError, match="DRMM_MAX_IMAGE_PIXELS"):
        runpy.run_module("drmm_hf.data.images")["open_image"](tmp_path / "picture.png")


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "picture.png", "EPS")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript was called"))
    with pytest.raises(ValueError, match=r"picture\.png"):
        open_image(tmp_path / "picture.png")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_source_unpickles_evaluates_or_trusts(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FormattedValue):  # nothing that logs, prints or raises holds a token
            assert not re.search(r"\b(hf_)?token\b|HF_TOKEN|os\.environ\b", ast.unparse(node)), node.lineno
        if not isinstance(node, ast.Call):
            continue
        name, where = ast.unparse(node.func), f"{path.name}:{node.lineno}"
        keywords = {f"{k.arg}={k.value.value}" for k in node.keywords if isinstance(k.value, ast.Constant)}
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system", "np.load"), where
        assert not name.endswith((".unsafe_load", ".full_load", ".extractall", ".extract")), where
        assert name != "torch.load" or "weights_only=True" in keywords, where
        assert not {"trust_remote_code=True", "allow_pickle=True", "weights_only=False", "shell=True"} & keywords, where
