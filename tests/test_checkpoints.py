"""Checkpoints of every built-in architecture, and what `load_model` refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialize
from torch import nn

from soae_ext.models import SmallCNN, load_checkpoint, load_model, resnet18, save_checkpoint, wide_resnet
from soae_ext.models.base import Classifier
from soae_ext.models.checkpoint import read

NETWORKS = {
    "small-cnn": lambda: SmallCNN((4, 6), 8, "softplus", (3, 12, 8), 5),
    "resnet18": lambda: resnet18(7, 4, "silu", "imagenet"),
    "wrn-10-2": lambda: wide_resnet(10, 2, 6, 4, "relu", "none"),
}


def randomised(model: nn.Module) -> nn.Module:
    """With running statistics unlike the initial ones, so that a test notices when they are lost."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def images_for(model: Classifier) -> torch.Tensor:
    return torch.rand(2, *(side or 16 for side in model.input_shape))


@pytest.fixture(params=NETWORKS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, nn.Module, Path]:
    model = randomised(NETWORKS[request.param]())
    save_checkpoint(model, tmp_path / "net.safetensors", {"command": "none"})
    return request.param, model, tmp_path / "net.safetensors"


def test_the_network_is_built_from_the_file_alone(saved) -> None:
    name, model, path = saved
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["architecture"] == name
    assert metadata["command"] == "none"
    state = torch.get_rng_state()
    back = load_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not back.training
    assert back.config == model.config == json.loads(metadata["config"])
    x = images_for(model)
    assert torch.equal(back(x), model(x))


def test_settings_that_the_spec_leaves_open_come_from_the_file(saved) -> None:
    name, model, path = saved
    x = images_for(model)
    assert torch.equal(load_model(name, path)(x), model(x))
    assert torch.equal(load_model(name, path, classes=model.classes)(x), model(x))
    activation = model.config["activation"]
    assert torch.equal(load_model(f"{name}:{activation}", path)(x), model(x))
    other = "silu" if activation == "relu" else "relu"
    with pytest.raises(ValueError, match=rf"activation is {activation} in .*net\.safetensors, not {other}"):
        load_model(f"{name}:{other}", path)
    with pytest.raises(ValueError, match=f"classes is {model.classes} in .*, not 3"):
        load_model(name, path, classes=3)


def test_another_architecture_is_named(saved) -> None:
    name, _, path = saved
    other = "wrn-16-2" if name != "small-cnn" else "resnet18"
    with pytest.raises(ValueError, match=f"another architecture: it holds {name}, asked for was {other}"):
        load_model(other, path)


def test_plain_state_dicts_need_the_right_settings(saved, tmp_path: Path) -> None:
    name, model, path = saved
    plain = tmp_path / "plain.safetensors"
    save_file(load_file(path), plain)
    with pytest.raises(ValueError, match="does not name its architecture"):
        load_checkpoint(plain)
    options = {
        "small-cnn": "small-cnn:softplus,input=3x12x8",
        "resnet18": "resnet18:width=4,silu,normalization=imagenet",
        "wrn-10-2": "wrn-10-2:width=4,normalization=none",
    }
    if name != "small-cnn":  # the widths of this one have no common factor with the standard's
        x = images_for(model)
        loaded = load_model(options[name], plain, classes=model.classes)
        assert torch.equal(loaded(x), model(x))
        with pytest.raises(ValueError, match=r"another architecture than .*fc\.weight \(\d, \d+\) instead of \(10, "):
            load_model(options[name], plain)
    with pytest.raises(ValueError, match="another architecture than") as told:
        load_model("wrn-16-8", plain)
    assert "it lacks" in str(told.value)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600


def test_state_dicts_of_wrapped_networks_and_of_other_implementations(tmp_path: Path) -> None:
    """DataParallel and torch.compile put a prefix before every name; some files lack the batch counters; the usual
    WRN-34-10 of adversarial training holds a stage that is never run."""
    model = randomised(wide_resnet(10, 1, width=4))
    x = images_for(model)
    tensors = model.state_dict()
    unused = {f"sub_{key}": value.clone() for key, value in tensors.items() if key.startswith("block1.")}
    slim = {key: value for key, value in tensors.items() if "num_batches" not in key}
    for number, variant in enumerate(
        (
            {f"module.{key}": value for key, value in tensors.items()},
            {f"_orig_mod.{key}": value for key, value in tensors.items()},
            {f"_orig_mod.module.{key}": value for key, value in tensors.items()},
            slim,
            {**tensors, **unused},
            {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()},
        )
    ):
        save_file(variant, tmp_path / f"{number}")
        loaded = load_model("wrn-10-1:width=4", tmp_path / f"{number}")
        assert torch.equal(loaded(x), model(x))
    save_file({**tensors, "extra": torch.zeros(1)}, tmp_path / "more")
    with pytest.raises(ValueError, match="has the unknown extra"):
        load_model("wrn-10-1:width=4", tmp_path / "more")
    save_file({key: value for key, value in tensors.items() if "running_mean" not in key}, tmp_path / "less")
    with pytest.raises(ValueError, match=r"it lacks block1\.layer\.0\.bn1\.running_mean, .* and 4 more"):
        load_model("wrn-10-1:width=4", tmp_path / "less")
    save_file({**tensors, "fc.weight": torch.zeros(10, 16, dtype=torch.int32)}, tmp_path / "whole")
    with pytest.raises(ValueError, match=r"another kind than wrn-10-1: fc\.weight"):
        load_model("wrn-10-1:width=4", tmp_path / "whole")


@pytest.mark.parametrize("key", ["fc.weight", "bn1.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_numbers_that_are_not_finite_in_float32(tmp_path: Path, key: str, value: float) -> None:
    tensors = resnet18(width=4).state_dict()
    tensors[key] = torch.full_like(tensors[key], value, dtype=torch.float64)
    save_file(tensors, tmp_path / "net")
    with pytest.raises(ValueError, match=rf"NaN or infinite: {key}$"):
        load_model("resnet18:width=4", tmp_path / "net")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("spec", ["digits", "small-cnn", "resnet18", "efficientnet-lite0", "torch.nn:Identity"])
def test_pickles_damaged_and_missing_files(tmp_path: Path, spec: str) -> None:
    if spec == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite_pytorch", reason="an optional package")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_model(spec, tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_model(spec, tmp_path)
    torch.save({"weight": Bomb()}, tmp_path / "zip")
    with pytest.raises(ValueError, match=r"is a pickle.*safetensors\.torch\.save_file"):
        load_model(spec, tmp_path / "zip")
    save_checkpoint(SmallCNN((2, 2), 4), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="truncated"):
        load_model(spec, tmp_path / "cut")


def test_metadata_that_do_not_build_a_network(tmp_path: Path) -> None:
    path = tmp_path / "net"

    def refuses(complaint: str, **metadata: str) -> None:
        save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
        with pytest.raises(ValueError, match=complaint):
            load_checkpoint(path)

    refuses("does not name its architecture", command="none")
    refuses("not built in: unknown name 'resnet19'; did you mean 'resnet18'", architecture="resnet19", config="{}")
    refuses("settings of its resnet18", architecture="resnet18")
    refuses("settings of its resnet18", architecture="resnet18", config="[1]")
    refuses("settings of its resnet18", architecture="resnet18", config="{")
    refuses("do not fit together.*depth", architecture="resnet18", config='{"depth": 3}')
    refuses("do not fit together.*width must be", architecture="resnet18", config='{"width": "wide"}')
    refuses("do not fit together.*activation", architecture="small_cnn", config='{"activation": "elu"}')
    refuses("another architecture than small-cnn", architecture="small_cnn", config="{}")
    refuses("another architecture than resnet18", architecture="resnet18", config='{"width": 100000}')


def test_files_of_the_first_format_still_load(tmp_path: Path) -> None:
    """The metadata were "small_cnn" with channels and hidden alone; the activation was ReLU."""
    model = SmallCNN((4, 6), 8)
    metadata = {"architecture": "small_cnn", "config": '{"channels": [4, 6], "hidden": 8}'}
    save_file(model.state_dict(), tmp_path / "old", metadata=metadata)
    x = images_for(model)
    assert torch.equal(load_checkpoint(tmp_path / "old")(x), model(x))
    with pytest.raises(ValueError, match=r"activation is relu in .*, not silu"):
        load_model("small-cnn:silu", tmp_path / "old")


def test_only_built_in_architectures_are_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Linear is not a built-in architecture.*save_file"):
        save_checkpoint(nn.Linear(2, 2), tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_header_whose_length_looks_like_the_start_of_a_pickle(tmp_path: Path) -> None:
    """640 is 0x280: the file begins with the bytes of a pickle of protocol 2."""
    for padding in range(700):
        content = serialize({"w": torch.zeros(1)}, {"note": "x" * padding})
        if content.startswith(b"\x80\x02"):
            break
    assert content.startswith(b"\x80\x02")
    (tmp_path / "file").write_bytes(content)
    tensors, metadata = read(tmp_path / "file")
    assert tensors["w"].tolist() == [0.0]
    assert metadata["note"] == "x" * padding
