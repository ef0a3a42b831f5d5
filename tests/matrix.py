"""Run the tests with the lowest and the newest supported versions: `make test-matrix`.

For each Python that is installed (python3.11 to python3.13) a virtual environment is made in build/matrix with what pip
chooses today; for the oldest also one with the lower bounds of pyproject.toml, some of which have no wheels for newer
Pythons. For a Python that is not installed pip only resolves the dependencies to wheels. The table goes to
docs/results/compatibility.md.
"""

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / "build" / "matrix"
PYTHONS = ("3.11", "3.12", "3.13")
SHOWN = ("torch", "torchvision", "transformers", "accelerate", "datasets", "timm", "huggingface-hub", "numpy")


def requirements(lowest: bool) -> list[str]:
    """Dependencies and the extras that the tests want; `lowest` pins each to its lower bound, 2.11 to 2.11.x."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        entry for extra in ("dev", "plots", "baselines") for entry in project["optional-dependencies"][extra]
    ]
    return [re.sub(r">=(\d+\.\d+)$", r"==\1.*", entry).replace(">=", "==") for entry in wanted] if lowest else wanted


def tested(python: str, lowest: bool, arguments: list[str]) -> dict[str, str]:
    """Versions and the last line of pytest in a fresh environment (kept; made again for other requirements)."""
    folder = ENVIRONMENTS / f"{python}-{'lowest' if lowest else 'newest'}"
    run = str(folder / "bin" / "python")
    complete, wanted = folder / "complete", requirements(lowest)
    if not complete.exists() or complete.read_text() != "\n".join(wanted):
        subprocess.run([f"python{python}", "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([run, "-m", "pip", "install", "--quiet", *wanted], check=True)
        subprocess.run([run, "-m", "pip", "install", "--quiet", "--no-deps", "-e", str(ROOT)], check=True)
        complete.write_text("\n".join(wanted))
    frozen = subprocess.run([run, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    versions = dict(re.findall(r"^([\w-]+)==([\w.]+)", frozen.replace("_", "-"), flags=re.MULTILINE))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [run, "-m", "pytest", "-q", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    (folder / "pytest.txt").write_text(result.stdout + result.stderr)
    last = (result.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    counts = ", ".join(re.findall(r"\d+ (?:failed|passed|skipped|errors?)", last))
    return {**{name: versions.get(name, "") for name in SHOWN}, "result": counts or last}


def installed(python: str) -> bool:
    """Whether the command runs: version managers put commands on the path that only say what they lack."""
    command = shutil.which(f"python{python}")
    return command is not None and subprocess.run([command, "-c", ""], capture_output=True).returncode == 0


def resolved(python: str) -> str:
    """Whether pip finds wheels of every dependency for a Python that is not installed here."""
    options = ["--python-version", python, "--only-binary=:all:", "--target", str(ENVIRONMENTS / "unused")]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", *options]
    result = subprocess.run([*command, *requirements(lowest=False)], capture_output=True, text=True)
    return "not installed here; wheels of all dependencies exist" if result.returncode == 0 else "wheels are missing"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, such as tests/test_mixture.py")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "compatibility.md")
    arguments = parser.parse_args()
    header = ["Python", "versions", *SHOWN, "tests"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    failed = False
    for python in PYTHONS:
        if not installed(python):
            lines.append(f"| {python} | newest |{' |' * len(SHOWN)} {resolved(python)} |")
            continue
        for name in ("lowest", "newest") if python == PYTHONS[0] else ("newest",):
            row = tested(python, name == "lowest", arguments.pytest)
            failed |= re.search("failed|error", row["result"]) is not None or "passed" not in row["result"]
            lines.append(f"| {python} | {name} | {' | '.join(row.values())} |")
            print(lines[-1], flush=True)
    arguments.output.write_text(
        "# Versions that were run\n\n    make test-matrix\n\n"
        + "\n".join(lines)
        + f"\n\nMade on {datetime.date.today()} under {platform.system()}. `lowest` are the lower bounds of "
        "pyproject.toml (the newest patch release of each); some of them have no wheels for newer Pythons.\n"
    )
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
