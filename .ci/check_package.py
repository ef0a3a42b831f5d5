"""Whether the built package works apart from this folder: `python .ci/check_package.py dist README.md`.

The wheel is installed without its dependencies in an empty virtual environment that finds them where this Python does,
which saves gigabytes. There the commands and the Python snippets of the README run on a few generated images: `drmm
NAME` as installed, and trainings with a few images. A command that is not known here is a failure: the README has no
command that nobody ever ran.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_SDIST = ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "Makefile", "pyproject.toml", "tests/conftest.py")
FEW_IMAGES = ["--train-images", "4", "--batch-size", "2"]
ARGUMENTS = {
    "quickstart": ["--data", "data", *FEW_IMAGES, "--num-pictures", "2"],
    "train": FEW_IMAGES,
}
PLACEHOLDERS = {"PICTURES": "data/images", "FOLDER": "data", "CHECKPOINT": "runs/quickstart/model"}
NOT_RUN = {
    r"make test$": "it is a step of its own",
    r"accelerate launch .* --data coco": "needs COCO and GPUs; the recipes are read by tests/training",
    r"drmm train .*--model PekingU/": "needs the Hub; tests/scripts trains small detectors of the same families",
}
SNIPPET_INPUT = """
import torch
from PIL import Image
locations, scales = torch.rand(2, 5, 4) * 60, torch.full((2, 5, 4), 4.0)
class_logits, objectness_logits = torch.randn(2, 5, 3), torch.randn(2, 5)
boxes, labels = torch.tensor([[[1.0, 2.0, 30.0, 40.0]]] * 2), torch.zeros(2, 1, dtype=torch.long)
mask = torch.ones(2, 1, dtype=torch.bool)
"""
DATA = """
import shutil
from pathlib import Path
from drmm_hf.data import generate_scenes
generate_scenes("data", num_train=4, num_val=4, image_size=(96, 128))
shutil.copy(sorted(Path("data/images").rglob("*.jpg"))[0], "picture.jpg")
"""

HELP = """
from drmm_hf.cli import COMMANDS, main
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0, name
"""


def check_contents(wheel: Path, sdist: Path) -> None:
    """Stop if the wheel is not exactly src/, or if the sdist lacks a file or has one of a build."""
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    if packed != sources:
        sys.exit(f"{wheel}: differs from src/ in {sorted(packed ^ sources)}")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in IN_SDIST if name not in names]
    stray = [name for name in names if "__pycache__" in name or name.startswith((".venv", "runs", "build", "dist"))]
    if missing or stray:
        sys.exit(f"{sdist}: lacks {missing}, and has {stray[:5]}")
    print(f"{wheel.name}: {len(packed)} files; {sdist.name}: {len(names)} files", flush=True)


def install(wheel: Path, folder: Path) -> Path:
    """The folder of the commands of a new environment with the wheel."""
    venv.create(folder, with_pip=True)
    run([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], folder)
    # After the installation: pip would find an editable installation there and leave out the wheel.
    packages = next(folder.glob("lib/python*/site-packages"))
    elsewhere = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(elsewhere) + "\n")
    return folder / "bin"


def run(command: list[str], folder: Path, shown: str | None = None) -> str:
    """The output of a command that must succeed, in `folder` and without this folder on Python's path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    begun = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}\n{shown or shlex.join(command)}: ended with status {done.returncode}")
    if shown:
        print(f"{time.perf_counter() - begun:6.1f} s  {shown}", flush=True)
    return done.stdout


def check_installed(commands: Path, folder: Path) -> None:
    """Import from the wheel, and --help of every command."""
    where = "import drmm_hf, transformers; print(drmm_hf.__file__)"
    imported = run([str(commands / "python"), "-c", where], folder, "import drmm_hf")
    if not Path(imported.strip().splitlines()[-1]).is_relative_to(commands.parent):
        sys.exit(f"drmm_hf was imported from {imported.strip()}, not from the wheel")
    if not (commands / "drmm").is_file():
        sys.exit("the wheel installs no command drmm")
    # In one process: most of the time goes into importing torch.
    run([str(commands / "python"), "-c", HELP], folder, "--help of every command")


def run_readme(readme: Path, commands: Path, folder: Path) -> None:
    """Every indented command and every fenced Python snippet, in their order."""
    text = readme.read_text().replace("\\\n", " ")
    (folder / "checkpoints").symlink_to(ROOT / "checkpoints")
    fenced, indented = r"^```python\n(.*?)^```", r"^ {4}((?:make|python|accelerate|drmm) [^\n]+)$"
    for snippet, line in re.findall(f"{fenced}|{indented}", text, re.DOTALL | re.MULTILINE):
        if snippet:
            run([str(commands / "python"), "-c", SNIPPET_INPUT + snippet], folder, snippet.strip().splitlines()[-1])
            continue
        command = line.split(" # ")[0].strip()
        reason = next((text for pattern, text in NOT_RUN.items() if re.search(pattern, command)), None)
        if reason:
            print(f"   not run  {command}: {reason}", flush=True)
        else:
            run(installed(command, commands), folder, command)


def installed(command: str, commands: Path) -> list[str]:
    """A command of the README as one of the installed package, on few images."""
    found = re.fullmatch(r"(?:make (?=quickstart)|drmm )([\w-]+)(.*)", command)
    if not found:
        sys.exit(f"README: {command!r} is no command that this check can run; add it here or under NOT_RUN")
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(found[2])]
    return [str(commands / "drmm"), found[1], *words, *ARGUMENTS.get(found[1], [])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path, help="folder with one wheel and one sdist")
    parser.add_argument("readme", type=Path)
    arguments = parser.parse_args()
    wheels, sdists = (sorted(arguments.dist.resolve().glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        parser.error(
            f"{arguments.dist}: holds {len(wheels)} wheels and {len(sdists)} sdists; `make package` leaves one of each"
        )
    check_contents(wheels[0], sdists[0])
    folder = Path(tempfile.mkdtemp(prefix="drmm-package-"))
    try:
        commands = install(wheels[0], folder / "venv")
        work = folder / "work"
        work.mkdir()
        check_installed(commands, work)
        run([str(commands / "python"), "-c", DATA], work, "data")
        run_readme(arguments.readme, commands, work)
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
