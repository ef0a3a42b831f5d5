"""`drmm check-data` from a checkout: see --help."""

import sys

from drmm_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["check-data", *sys.argv[1:]]))
