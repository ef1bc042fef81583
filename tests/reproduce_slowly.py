"""`soae reproduce` on tiny networks, with every step of a training slowed down, so that a signal meets one."""

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from soae_ext import cli
from soae_ext.commands import reproduce
from soae_ext.reproduce.limit import Limit


def tiny(tables, scale):
    """The plan on images of 8 x 8 in 3 classes."""
    from tests.reproduce_cases import block

    shrunk = []
    for table in scaled(tables, scale):
        parts = [replace(part, model=block().model, use=replace(block().use, train=40)) for part in table.blocks]
        shrunk.append(replace(table, blocks=tuple(parts)))
    return shrunk


def slow(self):
    """A step that takes a while."""
    time.sleep(0.5)


scaled = reproduce.scaled
if __name__ == "__main__":
    reproduce.scaled = tiny
    Limit.end_training = slow
    sys.exit(cli.main())
