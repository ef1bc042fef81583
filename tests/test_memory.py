"""Peak memory of the second-order attack on a ResNet-18 of full width, on a CPU."""

import os
import sys
from pathlib import Path

import pytest
import torch

from soae_ext.models import resnet18, save_checkpoint

_LIMIT = 4 * 2**30
# Every image costs the most that it can: no solve ends early, and no image is given up as fooled.
_SPEC = "SOAE-1:max_dim=5,threshold=0,early_stop=false"
_COMMAND = "import sys; from soae_ext import cli; sys.exit(cli.main(sys.argv[1:]))"
_AUTOMATIC = """
import sys
from soae_ext.attacks.names import parse_attack
from soae_ext.data import load_data
from soae_ext.models import load_checkpoint
data = load_data(sys.argv[2], n=int(sys.argv[3]))
_, attack = parse_attack(sys.argv[4] + ",batch_size=auto", 8 / 255)
result = attack(load_checkpoint(sys.argv[1]), data.images, data.labels)
assert (result.krylov_dims == 5).float().mean() > 0.9
"""


def peak_bytes(*words: str) -> int:
    """Largest resident memory of a Python process."""
    process = os.posix_spawn(sys.executable, [sys.executable, *words], {**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process, 0)
    assert status == 0
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
@pytest.mark.parametrize("automatic", [False, True], ids=["command", "batch_size=auto"])
def test_a_wide_resnet_fits_into_4_gib(data_dir: Path, tmp_path: Path, automatic: bool) -> None:
    """Exact products, 72 images, which are two batches: as many as are planned for, and the rest.

    As good as 1,000 images: batches follow one another, every one of the first size takes the same memory again, and
    what stays of them are images of 12 KiB. docs/results/cifar10_memory.json holds the run on 1,000.
    """
    network, data = str(tmp_path / "net.safetensors"), f"cifar10:{data_dir / 'cifar10'}"
    torch.manual_seed(0)
    save_checkpoint(resnet18(), network)
    if automatic:
        peak = peak_bytes("-c", _AUTOMATIC, network, data, "72", _SPEC)
    else:
        common = ("--model", "resnet18", "--checkpoint", network, "--data", data, "--n", "72")
        peak = peak_bytes("-c", _COMMAND, "attack", *common, "--attack", _SPEC)
    assert peak < _LIMIT
    # That it counts at all: the network's parameters and one batch are there.
    assert peak > 2**29
