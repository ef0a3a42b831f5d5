"""`drmm predict` on a small random model, and what it says of folders that are no model."""

import collections
import functools
import http.server
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from drmm_hf.cli import main
from model_fixtures import NAMES, save_small


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random model."""
    return save_small(tmp_path_factory.mktemp("model"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images of different sizes and formats."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in [("a.png", (80, 60)), ("b.jpg", (50, 90)), ("c.JPEG", (64, 64))]:
        Image.new("RGB", size, (120, 90, 60)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def predict(*arguments: str | Path) -> int:
    return main(["predict", *map(str, arguments)])


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run the command, which must refuse its input; the one line it prints."""
    assert predict(*arguments) == 2
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    (line,) = [line for line in captured.splitlines() if line.startswith("error: ")]
    return line


def test_it_writes_drawings_and_results(model, images, tmp_path, capsys):
    out = tmp_path / "out" / "deep"
    options = ["--model", model, "--output", out, "--threshold", "0", "--top-k", "5"]
    assert predict(images, *options, "--batch-size", "2") == 0
    assert "15 detections in 3 of 3 images" in capsys.readouterr().out
    results = json.loads((out / "predictions.json").read_text())
    assert [one["image_id"] for one in results] == [1] * 5 + [2] * 5 + [3] * 5
    assert [Path(one["file_name"]).name for one in results[::5]] == ["a.png", "b.jpg", "c.JPEG"]
    assert [one["drawing"] for one in results[::5]] == ["a.png", "b.png", "c.png"]
    assert all(one["category_name"] == NAMES[one["category_id"]] for one in results)
    assert all(len(one["bbox"]) == 4 and 0 < one["score"] < 1 for one in results)
    for name, size in [("a.png", (80, 60)), ("b.png", (50, 90)), ("c.png", (64, 64))]:
        with Image.open(out / name) as drawn:
            assert drawn.size == size
            assert len(drawn.getcolors(maxcolors=10**4)) > 1
    # threads change nothing
    assert predict(images, *options[:2], "--output", tmp_path / "again", *options[4:], "--workers", "0") == 0
    again = json.loads((tmp_path / "again" / "predictions.json").read_text())
    assert [one["category_id"] for one in again] == [one["category_id"] for one in results]


def test_the_thresholds_of_an_analysis_are_applied_class_by_class(model, images, tmp_path, capsys, caplog):
    options = ["--model", model, "--top-k", "20", "--output"]
    assert predict(images, *options, tmp_path / "all", "--threshold", "0") == 0
    everything = json.loads((tmp_path / "all/predictions.json").read_text())
    middle = sorted(one["score"] for one in everything)[len(everything) // 2]
    # a class with its own threshold, one of which nothing is worth keeping, and those that the data did not have
    per_class = {name: {"score_threshold": None, "objects": 0} for name in NAMES.values()}
    per_class[NAMES[0]] = {"score_threshold": middle, "objects": 3}
    per_class[NAMES[1]] = {"score_threshold": None, "objects": 3}
    analysis = tmp_path / "analysis.json"
    analysis.write_text(json.dumps({"checkpoints": [{"checkpoint": "x", "thresholds": {"per_class": per_class}}]}))
    assert predict(images, *options, tmp_path / "kept", "--analysis", analysis) == 0
    assert str(analysis) in capsys.readouterr().out
    kept = json.loads((tmp_path / "kept/predictions.json").read_text())
    limits = {0: middle, 1: 2.0, **dict.fromkeys(range(2, len(NAMES)), 0.5)}
    expected = [one for one in everything if one["score"] >= limits[one["category_id"]]]
    assert 0 < len(kept) < len(everything)
    assert [one["score"] for one in kept] == pytest.approx([one["score"] for one in expected])
    # of a class that the data did not know at all it says nothing
    del per_class[NAMES[2]]
    analysis.write_text(json.dumps({"checkpoints": [{"checkpoint": "x", "thresholds": {"per_class": per_class}}]}))
    assert predict(images, *options, tmp_path / "fewer", "--analysis", analysis) == 0
    assert NAMES[2] in caplog.text
    assert json.loads((tmp_path / "fewer/predictions.json").read_text()) == kept
    per_class = {"other": per_class[NAMES[0]]}
    analysis.write_text(json.dumps({"checkpoints": [{"checkpoint": "x", "thresholds": {"per_class": per_class}}]}))
    assert str(analysis) in fails(capsys, images, *options, tmp_path / "none", "--analysis", analysis)


def test_it_skips_what_it_cannot_read_and_finishes(model, images, tmp_path, capsys):
    (images / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:300])
    out = tmp_path / "out"
    assert predict(images, "--model", model, "--output", out, "--threshold", "0") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert "b.jpg" in line
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "c.png", "predictions.json"]
    assert {one["image_id"] for one in json.loads((out / "predictions.json").read_text())} == {1, 3}


def test_subfolders_and_urls_are_read_and_the_output_is_not(model, images, tmp_path, capsys):
    """A second run does not take the drawings of the first for pictures."""
    (images / "deep/er").mkdir(parents=True)
    shutil.copy(images / "a.png", images / "deep/er/d.png")
    (images / "deep/._d.png").write_bytes(b"what macOS adds to archives")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=images)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        inputs = [
            images,
            f"{address}/b.jpg?size=full",
            f"{address}/none.png",
            f"{address}/notes.txt",
            "http://[bad/a.png",
        ]
        for _ in range(2):
            assert predict(*inputs, "--model", model, "--output", images / "drawn", "--threshold", "0") == 1
        server.shutdown()
    assert predict(images, "--model", model, "--output", tmp_path) == 0, "above the pictures"
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    for line, named in zip(skipped, inputs[2:] * 2, strict=True):
        assert named in line
    results = json.loads((images / "drawn/predictions.json").read_text())
    assert {one["drawing"] for one in results} == {"a.png", "b.png", "c.png", "d.png", "b-2.png"}
    assert [one["bbox"] for one in results if one["file_name"].startswith(address)] == [
        one["bbox"] for one in results if one["file_name"].endswith("images/b.jpg")
    ]


def test_tiles_are_of_the_size_asked_for(model, images, tmp_path):
    Image.new("RGB", (500, 90), (120, 90, 60)).save(images / "wide.png")
    found = []
    for options in (["--tile", "90", "--overlap", "0.5"], ["--tile", "5000"], []):
        out = tmp_path / f"out{len(found)}"
        assert predict(images, "--model", model, "--output", out, "--threshold", "0", *options) == 0
        results = json.loads((out / "predictions.json").read_text())
        found.append([(one["file_name"], one["bbox"]) for one in results])
    assert found[1] == found[2]
    counts = [collections.Counter(Path(name).name for name, _ in one) for one in found]
    assert counts[0].pop("wide.png") > counts[2].pop("wide.png")
    assert counts[0] == counts[2]


def test_it_turns_photographs_upright_and_writes_into_drawn(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (80, 60)).save(tmp_path / "photo.jpg", exif=exif)
    assert predict("photo.jpg", "--model", model) == 0
    with Image.open("drawn/photo.png") as drawn:
        assert drawn.size == (60, 80)


def test_equal_names_are_kept_apart_and_an_image_is_predicted_once(model, images, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(images / "a.png", other / "A.png")
    shutil.copy(images / "a.png", other / "b-2.png")
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(images / "a.png", out / "y.png")  # an input must not be overwritten
    assert predict(images / "a.png", images, other, out / "y.png", "--model", model, "--output", out) == 0
    drawings = sorted(path.name for path in out.iterdir() if path.name != "predictions.json")
    assert drawings == ["A-2.png", "a.png", "b-2.png", "b.png", "c.png", "y-2.png", "y.png"]
    assert (out / "y.png").read_bytes() == (images / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("inputs", "options", "named"),
    [
        (["empty"], {}, "empty"),
        (["images", "none.jpg"], {}, "none.jpg"),
        (["images"], {"--output": "images"}, "images"),
        (["images"], {"--output": "images/a.png"}, "images/a.png"),
        (["images"], {"--device": "abacus"}, "abacus"),
        (["images"], {"--tile": "100", "--overlap": "1"}, "--overlap"),
        (["images"], {"--tile": "1"}, "--tile 1"),
        (["images"], {"--tile": "300", "--overlap": "0.99"}, "--overlap 0.99"),
        (["images"], {"--output": "/proc/out"}, "--output /proc/out"),
        (["images"], {"--model": "nowhere"}, "nowhere"),
        (["images"], {"--model": "images/a.png"}, "images/a.png"),
    ],
)
def test_bad_inputs_are_one_line(inputs, options, named, model, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = {"--model": model, "--output": "out", **options}
    assert named in fails(capsys, *inputs, *(word for pair in given.items() for word in pair))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "value"), [("--threshold", "1.5"), ("--top-k", "0"), ("--batch-size", "x")])
def test_bad_options_are_named(option, value, capsys):
    with pytest.raises(SystemExit) as end:
        predict("x.jpg", "--model", "m", option, value)
    assert end.value.code == 2
    assert option in capsys.readouterr().err


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def drop_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def ask_for(**fields: int) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), **fields})
    )


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (write("config.json", '{"model_type": "detr"}'), "config.json"),
        (write("config.json", '{"hidden_size": 64}'), "model_type"),
        (write("config.json", '{"model_type": '), "config.json"),
        (write("config.json", "[" * 10**5), "config.json"),
        (write("config.json", "[1]"), "config.json"),
        (write("config.json", '{"model_type": "drmm", "num_stages": 0}'), "num_stages"),
        (remove("config.json"), "config.json"),
        (write("preprocessor_config.json", "{"), "preprocessor_config.json"),
        (remove("preprocessor_config.json"), "preprocessor_config.json"),
        (remove("model.safetensors"), "safetensors"),
        (write("model.safetensors", b"\x08\0\0\0"), "broken"),
        (drop_a_tensor, "1 tensors"),
        (ask_for(num_stages=1), "heads.1"),
        (ask_for(decoder_ffn_dim=32), "shape"),
    ],
)
def test_damaged_model_folders(damage, named, model, images, tmp_path, capsys):
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    damage(broken)
    error = fails(capsys, images, "--model", broken, "--output", tmp_path / "out")
    assert named in error
    assert "broken" in error
