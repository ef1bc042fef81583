"""Labelled images in memory: fingerprints, and checks against a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from soae_ext.data import ImageData


@settings(deadline=None, max_examples=25)
@given(hnp.arrays(np.uint8, (3, 1, 2, 2)), st.integers(0, 2), st.sampled_from(["pixel", "label", "name", "shape"]))
def test_fingerprints_tell_data_apart(pixels: np.ndarray, row: int, change: str) -> None:
    images, labels = torch.from_numpy(pixels / np.float32(255)), torch.tensor([0, 1, 2])
    data = ImageData(images, labels, "one")
    if change == "pixel":
        images = images.clone()
        images[row] = (images[row] + 0.5) % 1.0 + 0.001
    elif change == "label":
        labels = labels + torch.nn.functional.one_hot(torch.tensor(row), 3)
    elif change == "shape":
        images = images.reshape(3, 1, 4, 1)
    other = ImageData(images, labels, "two", classes=("a", "b", "c"))
    assert (other.fingerprint == data.fingerprint) == (change == "name")
    assert len(data.fingerprint) == 64


def test_fingerprints_do_not_depend_on_the_layout_in_memory() -> None:
    images = torch.rand(4, 3, 5, 6)
    strided = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(4)
    assert ImageData(images, labels, "").fingerprint == ImageData(strided, labels, "").fingerprint
    assert ImageData(images, labels, "").first(3).fingerprint == ImageData(images[:3], labels[:3], "").fingerprint


@pytest.mark.parametrize(
    ("images", "labels", "kind", "complaint"),
    [
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2).long(), TypeError, r"float\(\) / 255"),
        (torch.zeros(2, 1, 2, 2), torch.zeros(2), TypeError, r"labels\.long\(\)"),
        (torch.zeros(2, 1, 2, 2), torch.zeros(3).long(), ValueError, "one label per image"),
        (torch.zeros(0, 1, 2, 2), torch.zeros(0).long(), ValueError, "no images"),
        (torch.zeros(2, 3, 2, 2), torch.zeros(2).long(), ValueError, r"takes images \(1, any, 2\)"),
        (torch.tensor([0.5, 1.5]).view(2, 1, 1, 1).expand(2, 1, 2, 2), torch.zeros(2).long(), ValueError, "image 1 is"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, 5]), ValueError, "0 to 4, these span 0 to 5 .image 1"),
    ],
)
def test_data_that_a_network_cannot_take(images, labels, kind, complaint) -> None:
    with pytest.raises(kind, match=complaint):
        ImageData(images, labels, "some").check((1, None, 2), 5)
