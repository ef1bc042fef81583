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


def process(*words, program=("-m", "soae_ext.cli"), environment=(), **options):
    """One command in a process of its own."""
    # A shell starts its background jobs deaf to Ctrl-C, and so are the tests that run in one.
    options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
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
