"""`soae` with the arguments given, without the sanity section (which takes longest), and with a fault on request.

FAULT is `half:K`, killed while the K-th batch from now is half on disk; `after:K`, killed when it has been written;
`report`, killed when the HTML is half on disk; `full:R`, the disk of process R is full; `bug:R`, process R has a bug.
"""

import errno
import os
import signal
import sys
from pathlib import Path

import soae_ext.evaluation.report.page as page
import soae_ext.evaluation.store as store
import soae_ext.evaluation.study as study
from soae_ext import cli

study.sanity_section = lambda context: []
kind, _, number = os.environ.get("FAULT", "").partition(":")
here = os.environ.get("RANK", "0") == number
saved = 0
save, replacing = store.Store.save, page.replacing


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def faulty_save(self, job, batch, key, tensors):
    global saved
    saved += 1
    if kind == "full" and here:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if kind == "bug" and here:
        raise RuntimeError("a bug")
    if kind == "half" and saved == int(number):
        write = Path.write_bytes
        Path.write_bytes = lambda path, content: (write(path, content[: len(content) // 2]), kill())
    save(self, job, batch, key, tensors)
    if kind == "after" and saved == int(number):
        kill()


store.Store.save = faulty_save
if kind == "report":
    write_text = Path.write_text

    def half(path, text, **options):
        write_text(path, text[: len(text) // 2], **options)
        if ".html" in path.name:
            kill()

    Path.write_text = half
sys.exit(cli.main())
