"""The job for a cluster, at small size: two processes, stopped by the clock and continued."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli_harness import ROOT

pytest.importorskip("lightning_fabric")
pytestmark = pytest.mark.slow

_OPTIONS = "--scale 0.0005 --device cpu --networks mnist-resnet18 --rows PGD SOAT --seeds 1 --columns clean PGD-20"


def job(data, folder, minutes, processes=2):
    """The script as the cluster runs it: status, and what it wrote."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {
        **os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TABLES": "1",
        "RUN_DIR": str(folder / "run"), "DATA": str(data), "MINUTES": str(minutes), "PROCESSES": str(processes),
        "OPTIONS": f"{_OPTIONS} --threads 1",
    }  # fmt: skip
    variables.pop("SLURM_JOB_ID", None)
    command = ["bash", str(ROOT / "examples" / "reproduce_slurm.sh")]
    run = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=1500)
    return run, json.loads((folder / "run.json").read_text()) if (folder / "run.json").is_file() else None


def test_two_processes_make_the_papers_cells_and_continue(data_dir, tmp_path):
    first, document = job(data_dir, tmp_path, 0.01)
    assert first.returncode == 0, first.stderr
    assert len(document["left"]) > 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cells").rglob("*.json")}
    second, document = job(data_dir, tmp_path, 60)
    assert second.returncode == 0, second.stderr
    assert document["left"] == []
    assert second.stdout.count("Every cell is measured") == 1  # one process speaks
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    rows = {row["name"]: row for row in document["tables"][0]["blocks"][0]["rows"]}
    for name in ("PGD", "SOAT"):
        (cell,) = [each for each in rows[name]["cells"]["PGD-20"] if each]
        assert cell["processes"] == 2
        assert len(cell["image_correct"]) == cell["images"] == 5
        (training,) = [each for each in rows[name]["training"] if each]
        assert training["processes"] == 2


def test_bad_input_of_two_processes_is_one_line(data_dir, tmp_path):
    run, _ = job(tmp_path / "nowhere", tmp_path, 1)
    assert run.returncode != 0
    assert run.stderr.count("soae reproduce: --data: ") == 1
