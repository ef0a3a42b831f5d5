"""Trainings in two processes, as a launcher starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_two_processes(configs: list[dict[str, Any]], folder: Path) -> None:
    """Run each of the settings, one after the other, in two processes."""
    (folder / "configs.json").write_text(json.dumps(configs))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(ROOT / "tests/training/run_configs.py"), str(folder / "configs.json")]
    done = subprocess.run([*command, *script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-9000:]
