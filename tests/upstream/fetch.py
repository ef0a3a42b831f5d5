"""Get transformers' own common tests: they are in its source distribution, not in the wheel.

    python tests/upstream/fetch.py [FOLDER]

downloads the source distribution of the installed version (once) and leaves a package `transformers_upstream` with the
files that are used, and stand-ins for the four helper modules that the distribution leaves out.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

FOLDER = Path(__file__).parents[2] / "build" / "upstream"
FILES = (
    "test_modeling_common.py",
    "test_image_processing_common.py",
    "test_configuration_common.py",
    "test_image_transforms.py",
)
# Imported by the files above and absent from the distribution. The first two hold tests of text generation and of
# exporters that need packages of their own; the third is a list of arguments of text models' configurations; the last
# loads pictures from the Hub.
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {'output_hidden_states': True}\n",
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def fetch(folder: Path = FOLDER) -> Path:
    """Return the folder to put on `sys.path`; nothing is downloaded when it is there already."""
    target = folder / transformers.__version__
    if (target / "complete").exists():
        return target
    with tempfile.TemporaryDirectory() as download:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", download]
        subprocess.run([*command, f"transformers=={transformers.__version__}"], check=True)
        with tarfile.open(next(Path(download).glob("*.tar.gz"))) as archive:
            archive.extractall(download, filter="data")
        source = next(Path(download).glob("transformers-*/tests"))
        package = target / "transformers_upstream"
        for name in FILES:
            destination = package / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes((source / name).read_bytes())
    for name, text in STAND_INS.items():
        path = package / name if "/" in name else target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for parent in {path.parent for path in package.rglob("*.py")}:
        (parent / "__init__.py").touch()
    (target / "complete").touch()
    return target


if __name__ == "__main__":
    print(fetch(*map(Path, sys.argv[1:])))
