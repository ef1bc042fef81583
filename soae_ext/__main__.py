"""`python -m soae_ext` is `soae doctor`, and works where the packages of the command line are missing."""

import argparse
import sys
from pathlib import Path

from soae_ext.doctor import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m soae_ext", description="What was built, seen and is missing.")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the report as JSON")
    sys.exit(main(parser.parse_args().output))
