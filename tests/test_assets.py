"""The shipped network and digits, and the checkpoint format."""

import pickle

import pytest
import torch
from torch.nn.functional import cross_entropy

from soae_ext.attacks import PGD
from soae_ext.data import load_digits, shipped_file
from soae_ext.models.small_cnn import SmallCNN, digits_network, load_checkpoint, save_checkpoint


def test_sizes_and_types():
    files = [shipped_file(name) for name in ("digits.safetensors", "digits_cnn.safetensors")]
    assert sum(file.stat().st_size for file in files) <= 2_000_000
    digits = load_digits()
    assert digits.images.shape == (1000, 1, 28, 28)
    assert digits.images.dtype == torch.float32
    assert float(digits.images.min()) == 0
    assert float(digits.images.max()) == 1
    assert sorted(set(digits.labels.tolist())) == list(range(10))
    model = load_checkpoint(files[1])
    assert not model.training
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_source_and_licence_are_stated():
    text = shipped_file("README.md").read_text()
    for words in ("LeCun", "Cortes", "Burges", "ShareAlike 3.0", "examples/train_digits.py --data DIR"):
        assert words in text


def test_the_network_is_accurate():
    digits, model = load_digits(), digits_network()
    with torch.no_grad():
        assert int((model(digits.images).argmax(1) == digits.labels).sum()) >= 980


@pytest.mark.slow
@pytest.mark.parametrize("random_start", [False, True])
def test_robust_accuracy_of_the_network(random_start):
    """PGD-40 written out here, and the package's own with restarts, leave at least 88 % of all digits."""
    digits, model = load_digits(), digits_network()
    x, y = digits.images, digits.labels
    torch.manual_seed(0)
    moved = (x + random_start * 0.3 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(40):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(model(moved), y, reduction="sum"), moved)
        moved = (moved.detach() + 0.01 * gradient.sign()).clamp(x - 0.3, x + 0.3).clamp(0, 1)
    with torch.no_grad():
        last = int((model(moved).argmax(1) == y).sum())
    ours = PGD(0.3, steps=40, step_size=0.01, random_start=random_start, restarts=2)(model, x, y)
    best = int((~ours.success).sum())
    assert last >= best >= 880


def test_checkpoints_come_back_as_they_were(tmp_path):
    torch.manual_seed(0)
    model = SmallCNN((4, 6), 8)
    save_checkpoint(model, tmp_path / "net.safetensors", {"command": "none"})
    back = load_checkpoint(tmp_path / "net.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(SmallCNN((4, 6), 8), tmp_path / "net.safetensors")
    before = (tmp_path / "net.safetensors").read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("soae_ext._files.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(SmallCNN((2, 2), 8), tmp_path / "net.safetensors")
    assert (tmp_path / "net.safetensors").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_bad_checkpoints_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_checkpoint(tmp_path / "nothing")
    whole = shipped_file("digits_cnn.safetensors").read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated"):
            load_checkpoint(tmp_path / "cut")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "pickle").write_bytes(pickle.dumps(Bomb(), protocol))
        with pytest.raises(ValueError, match=r"is a pickle|not a safetensors"):
            load_checkpoint(tmp_path / "pickle")
    torch.save({"weight": Bomb()}, tmp_path / "zip")
    with pytest.raises(ValueError, match=r"is a pickle.*safetensors\.torch\.save_file"):
        load_checkpoint(tmp_path / "zip")
