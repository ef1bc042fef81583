"""What is installed, what it pulls in, and what the build says when it cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import soae_ext
from soae_ext import _native

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "setup.py").is_file():
    pytest.skip("the source tree is not here", allow_module_level=True)

needs_build_tools = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("setuptools", "pybind11", "cmake", "ninja")),
    reason="setuptools, pybind11, cmake and ninja are not all installed",
)
needs_extension = pytest.mark.skipif(
    _native.extension is None, reason=f"the compiled extension is missing: {_native.missing}"
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree with nothing built in it."""
    ignored = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.so", "*.egg-info", "venv")
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "soae_ext", ignore=ignored))


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("SOAE_", "CMAKE_"))}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=variables | environment, capture_output=True, text=True, timeout=600
    )


def sources(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in (root / "csrc").rglob("*")
        if path.suffix in {".h", ".cpp", ".cu", ".cuh"}
    }


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("build") is None:
        pytest.skip("the package build is not installed")
    out = tmp_path_factory.mktemp("sdist")
    done = run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, tree, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = out.glob("*.tar.gz")
    return archive


@needs_build_tools
def test_the_sdist_holds_what_a_build_needs(tree: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    top = {"setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "LICENSE", "CHANGELOG.md"}
    package = {str(path.relative_to(tree)) for path in (tree / "soae_ext").rglob("*") if path.is_file()}
    assert top | sources(tree) | package <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@needs_build_tools
@pytest.mark.slow
def test_the_sdist_builds_a_wheel_that_works(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()

    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, source)
    done = run(*pip, cwd=tmp_path, SOAE_CUDA="off")

    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    needed = {"_C.pyi", "py.typed", "assets/digits.safetensors", "reproduce/paper.json"}
    assert {f"soae_ext/{name}" for name in needed} <= set(names)
    assert [name for name in names if re.fullmatch(r"soae_ext/_C\..*\.(so|pyd)", name)]
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"soae_ext"}
    code = "import soae_ext; print(soae_ext.__file__, soae_ext.build_info())"
    told = run(sys.executable, "-W", "error", "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert told.returncode == 0, told.stderr
    assert str(tmp_path) in told.stdout
    assert "'cuda': None" in told.stdout


@needs_build_tools
@pytest.mark.slow
def test_without_newer_instruction_sets_the_results_agree(tree: Path, tmp_path: Path) -> None:
    built = tmp_path / "lib"
    command = (sys.executable, "setup.py", "-q", "build", "--build-temp", tmp_path / "temp", "--build-lib", built)
    done = run(*command, cwd=tree, SOAE_CUDA="off", CMAKE_ARGS="-DSOAE_X86_64_LEVELS=OFF")
    assert done.returncode == 0, done.stdout + done.stderr

    code = """
import torch
from soae_ext.gmres import gmres
torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
    A = 4 * torch.eye(333, dtype=dtype) + torch.randn(3, 333, 333, dtype=dtype) / 333**0.5
    b = torch.randn(3, 333, dtype=dtype)
    for orthogonalization in ("mgs", "cgs2"):
        result = gmres(A, b, rtol=tolerance, restart=7, orthogonalization=orthogonalization, backend="cpu")
        print(result.status.tolist(), result.iterations.tolist())
        error = torch.linalg.solve(A.double(), b.double()) - result.x.double()
        assert (error.norm(dim=1) < 3 * tolerance * b.norm(dim=1)).all()
"""
    plain = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(built))
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).stdout


@needs_build_tools
def test_asking_for_cuda_without_a_compiler_says_so(tree: Path, tmp_path: Path) -> None:
    command = (sys.executable, "setup.py", "-q", "build_ext", "--build-temp", tmp_path, "--build-lib", tmp_path)

    done = run(*command, cwd=tree, SOAE_CUDA="on", CUDACXX=str(tmp_path / "no-nvcc"))

    assert done.returncode != 0
    (line,) = (line for line in (done.stdout + done.stderr).splitlines() if "no CUDA compiler was found" in line)
    assert "SOAE_CUDA=on" in line
    assert "nvcc" in line
    assert "SOAE_CUDA=off pip install ." in line
    assert "Traceback" not in done.stderr


@needs_build_tools
def test_a_misspelt_switch_is_refused(tree: Path, tmp_path: Path) -> None:
    command = (sys.executable, "setup.py", "-q", "build_ext", "--build-temp", tmp_path, "--build-lib", tmp_path)

    done = run(*command, cwd=tree, SOAE_CUDA="yes")

    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "error: SOAE_CUDA='yes' is not one of auto, on, off."


def test_the_bare_source_tree_names_the_remedy_and_still_solves(tree: Path, tmp_path: Path) -> None:
    code = """
import sys, warnings
# An editable install would lend its compiled module to the copy.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import soae_ext
    import soae_ext.hvp
    from soae_ext.gmres import gmres
print(soae_ext.__file__, soae_ext.build_info()["compiler"])
for warning in caught:
    print("warning:", warning.message)
import torch
warnings.simplefilter("ignore")
print(gmres(torch.eye(3), torch.ones(2, 3)).converged.tolist())
"""
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tree))

    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[0] == f"{tree / 'soae_ext' / '__init__.py'} None"
    assert len([line for line in told if line.startswith("warning:")]) == 1
    assert "pip install ." in told[1]
    assert "pip install -e ." in told[1]
    assert told[-1] == "[True, True]"


def test_importing_the_solver_pulls_in_torch_and_numpy_alone(tmp_path: Path) -> None:
    code = """
import sys
import numpy, torch
before = set(sys.modules)
import soae_ext.gmres
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
print(*sorted(name for name in sys.modules if name.startswith("soae_ext.")))
print(callable(soae_ext.gmres))
"""
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))

    assert done.returncode == 0, done.stderr
    imported, ours, shadowed = done.stdout.splitlines()
    assert "soae_ext" in imported.split()
    # Of what torch itself brings in nothing can be said, so these are the names of all other dependencies.
    others = {"tyro", "tqdm", "safetensors", "matplotlib", "datasets", "scipy", "pandas", "PIL"}
    assert others.isdisjoint(imported.split())
    assert {"soae_ext.attacks", "soae_ext.cli", "soae_ext.hvp", "soae_ext.data"}.isdisjoint(ours.split())
    assert shadowed == "False"


@needs_extension
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system has no /proc/self/maps")
def test_one_openmp_runtime_in_the_process(tmp_path: Path) -> None:
    code = """
import soae_ext, torch
maps = open("/proc/self/maps").read()
print(*sorted({line.split()[-1] for line in maps.splitlines() if "libgomp" in line or "libomp" in line}))
"""
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) <= 1, done.stdout


@needs_extension
def test_the_module_needs_neither_cuda_nor_torch_to_load() -> None:
    if shutil.which("ldd") is None:
        pytest.skip("ldd is not installed")
    assert _native.extension is not None
    assert _native.extension.__file__ is not None

    needed = subprocess.run(["ldd", _native.extension.__file__], capture_output=True, text=True, check=True).stdout

    assert "libc.so" in needed or "musl" in needed
    assert not re.findall(r"lib(?:cuda|cudart|cublas|torch|c10)\S*", needed)


def test_no_torch_header_in_the_kernels() -> None:
    pattern = re.compile(r"#\s*include\s*[<\"](torch|ATen|c10|caffe2|THC?)\b")

    found = [name for name in sorted(sources(ROOT)) if pattern.search((ROOT / name).read_text())]

    assert len(sources(ROOT)) > 10
    assert found == []


@needs_extension
def test_the_version_is_the_same_everywhere() -> None:
    assert soae_ext.build_info()["version"] == soae_ext.__version__
    assert importlib.metadata.version("soae-ext") == soae_ext.__version__
