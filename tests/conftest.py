"""Fixtures: every rule of the solver is tested on every backend that this machine can run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from soae_ext import _native


@pytest.fixture(scope="session")
def simt() -> ModuleType:
    """The CUDA kernels compiled for the CPU, registered as backend "simt"."""
    from tests import simt_build

    try:
        module = simt_build.load_simt()
    except simt_build.Unavailable as reason:
        pytest.skip(f"the SIMT build needs {reason}")
    _native.host_modules["simt"] = module
    return module


@pytest.fixture
def simt_alone(simt: ModuleType) -> Iterator[ModuleType]:
    """The SIMT module, undisturbed by idle OpenMP threads; its controls are put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield simt
    torch.set_num_threads(threads)
    simt.set_schedule("in-order")
    simt.set_multiprocessors(132)
    simt.set_largest_cluster(16)
    simt.cuda.force_variant(-1)


@pytest.fixture(params=["reference", "cpu", "simt", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend that can run here; tests place their tensors with the fixture `device`."""
    name: str = request.param
    threads = torch.get_num_threads()
    if name == "simt":
        request.getfixturevalue("simt")
        torch.set_num_threads(1)  # idle OpenMP threads would spin beside the executor, which uses one
    elif name == "cpu" and _native.extension is None:
        pytest.skip(f"the compiled extension is missing: {_native.missing}")
    elif name == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA GPU")
        if not hasattr(_native.extension, "cuda"):
            pytest.skip("the extension was built without CUDA")
    yield name
    torch.set_num_threads(threads)


@pytest.fixture
def device(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "cuda" else "cpu")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["f32", "f64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with `mnist/*.parquet` and the like, named by SOAE_DATA_DIR."""
    name = os.environ.get("SOAE_DATA_DIR")
    if not name:
        pytest.skip("SOAE_DATA_DIR is not set")
    if not Path(name, "mnist").is_dir():
        pytest.skip(f"SOAE_DATA_DIR={name} holds no folder mnist")
    return Path(name)
