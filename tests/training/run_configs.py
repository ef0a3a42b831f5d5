"""Train each of a JSON list of settings, one after the other, in this process: `python run_configs.py FILE`."""

import json
import sys
from pathlib import Path

from accelerate import PartialState

from drmm_hf.training import TrainConfig, train

if __name__ == "__main__":
    for fields in json.loads(Path(sys.argv[1]).read_text()):
        train(TrainConfig(**fields))
    PartialState().destroy_process_group()
