"""`soae evaluate` interrupted at any point, on a full disk, and shared between processes."""

import json
import resource
import signal

import pytest

from tests.cli_harness import ROOT, process, refuse

DRIVER = str(ROOT / "tests" / "evaluate_driver.py")
# Two batches of clean images, and as many of each attack and each point of the curve.
WORDS = (
    "evaluate",
    "--n",
    "4",
    "--batch-size",
    "2",
    "--threads",
    "1",
    "--attack",
    "FGSM",
    "SOAE-1",
    "--curves",
    "fd_step",
)


def run(folder, *words, fault="", program=(DRIVER,), **options):
    """Exit status, stdout and stderr of the command in a process of its own."""
    words = (*words, "--output", "run.json")
    process_ = process(*words, program=program, environment={"FAULT": fault}, cwd=folder, **options)
    out, err = process_.communicate(timeout=300)
    return process_.returncode, out, err


def document(folder):
    """The document without what may differ between equal runs."""

    def stripped(value):
        if isinstance(value, dict):
            return {name: stripped(part) for name, part in value.items() if name not in ("seconds", "date")}
        return [stripped(part) for part in value] if isinstance(value, list) else value

    content = stripped(json.loads((folder / "run.json").read_text(), parse_constant=refuse))
    del content["git"]  # somebody may commit while the tests run
    return content


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The document of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    status, _, err = run(folder, *WORDS)
    assert status == 0, err
    return document(folder)


def test_a_killed_run_continues_and_ends_the_same(expected, tmp_path):
    parts = tmp_path / "run.json.parts"
    for fault, complete in (("half:2", 1), ("half:8", 8), ("report", None)):
        status, _, err = run(tmp_path, *WORDS, fault=fault)
        assert status == -signal.SIGKILL, err
        assert not (tmp_path / "run.json").exists()
        assert not (tmp_path / "run.html").exists()
        if complete is not None:
            assert len(list(parts.rglob("[0-9]*.safetensors"))) == complete
    status, _, err = run(tmp_path, *WORDS, fault="after:1")
    assert status == 0, err  # nothing was left to compute, so nothing was saved
    assert document(tmp_path) == expected
    assert not parts.exists()


@pytest.mark.slow
def test_ctrl_c_is_status_130_and_the_run_continues(expected, tmp_path):
    process_ = process(*WORDS, "--output", "run.json", program=(DRIVER,), cwd=tmp_path)
    seen = ""
    while "SOAE" not in seen:  # the progress bar: FGSM is done
        letter = process_.stderr.read(1)
        assert letter, seen
        seen += letter
    process_.send_signal(signal.SIGINT)
    _, err = process_.communicate(timeout=120)
    assert process_.returncode == 130
    assert "Traceback" not in seen + err
    assert err.splitlines()[-1] == "soae evaluate: interrupted; the same command continues where it was"
    assert run(tmp_path, *WORDS)[0] == 0
    assert document(tmp_path) == expected


@pytest.mark.slow
def test_a_limit_on_the_file_size(expected, tmp_path):
    """The batches fit, the HTML report does not; with more room the run ends from where it was."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    status, _, err = run(tmp_path, *WORDS, preexec_fn=limit)
    assert status == 2
    assert err.splitlines()[-1] == "soae evaluate: --output: File too large"
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json.parts"]
    assert run(tmp_path, *WORDS, fault="after:1")[0] == 0
    assert document(tmp_path) == expected


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", DRIVER, "--")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(expected, tmp_path):
    status, out, err = run(tmp_path, *WORDS, program=TORCHRUN)
    assert status == 0, err
    assert document(tmp_path) == expected
    assert out.count("worst case") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.html", "run.json", "run.md"]


@pytest.mark.slow
def test_two_processes_continue_what_one_began(expected, tmp_path):
    assert run(tmp_path, *WORDS, fault="after:5")[0] == -signal.SIGKILL
    status, _, err = run(tmp_path, *WORDS, program=TORCHRUN)
    assert status == 0, err
    assert document(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words", "line"),
    [
        ("full:1", (), "soae evaluate: --output: No space left on device"),
        ("full:0", (), "soae evaluate: --output: No space left on device"),
        ("", ("--eps", "-1"), "soae evaluate: --eps: must be finite and not negative, got -1.0"),
        ("", ("--eps", "big"), "soae evaluate: --eps: expected a number, got 'big'"),
    ],
)
def test_an_error_of_one_process_ends_all_with_one_line(tmp_path, fault, words, line):
    status, out, err = run(tmp_path, *WORDS, *words, fault=fault, program=TORCHRUN)
    assert status != 0
    assert out == ""
    lines = [text for text in err.replace("\r", "\n").splitlines() if text.startswith("soae evaluate")]
    assert lines == [line], err
    assert "exitcode  : 2" in err
    assert not (tmp_path / "run.json").exists()


@pytest.mark.slow
def test_a_bug_in_one_process_ends_all(tmp_path):
    status, out, err = run(tmp_path, *WORDS, fault="bug:1", program=TORCHRUN)
    assert (status, out) == (1, "")
    assert "RuntimeError: a bug" in err
    assert not (tmp_path / "run.json").exists()
