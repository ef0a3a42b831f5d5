"""`make test-upstream` downloads transformers' common tests first; only it collects what is here."""

import os
import sys
from pathlib import Path

import transformers

collect_ignore_glob = [] if os.environ.get("DRMM_UPSTREAM") else ["*"]
sys.path.append(str(Path(__file__).parents[2] / "build" / "upstream" / transformers.__version__))
