"""Running `soae` in tests, in this process or in another."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from soae_ext import cli

ROOT = Path(__file__).parent.parent


def refuse(number):
    """For `json.loads(parse_constant=...)`: NaN and Infinity are not JSON."""
    raise ValueError(f"{number} is not JSON")


def call(capfd, *words):
    """Exit status, stdout and stderr of one command, run in this process."""
    try:
        status = cli.main(list(words))
    except SystemExit as error:
        status = error.code or 0
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def _hear_signals():
    """Background jobs of a shell are deaf to Ctrl-C, what `nohup` starts to SIGHUP, and so is all that they start."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def process(*words, program=("-m", "soae_ext.cli"), environment=(), **options):
    """One command in a process of its own."""
    options.setdefault("preexec_fn", _hear_signals)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **dict(environment)}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *program, *words],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def assert_refused(capfd, words, expected):
    """The command ends with status 2 and says so in one line that starts with `expected`."""
    status, out, err = call(capfd, *words)
    assert (status, out) == (2, "")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.startswith(expected), err
