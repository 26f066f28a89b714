"""Run-length codes of masks are those of pycocotools."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from ovformer.ops.mask_rle import encode_masks, encode_runs


@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9)),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_both_functions_equal_pycocotools(shape, density, seed) -> None:
    masks = torch.from_numpy(np.random.default_rng(seed).random(shape) < density)
    codes = encode_masks(masks)
    assert encode_runs(masks) == codes and len(codes) == len(masks)
    for code, mask in zip(codes, masks.numpy(), strict=True):
        expected = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert code["size"] == list(mask.shape) == expected["size"]
        assert code["counts"] == expected["counts"].decode()


def test_long_runs() -> None:
    """Counts of several characters, also negative differences of counts."""
    masks = torch.zeros(2, 300, 400, dtype=torch.bool)
    masks[0, 5:290, 3:390] = True
    masks[1, :, 200] = masks[1, 7, :20] = True
    assert encode_runs(masks) == encode_masks(masks)
    assert [coco_mask.area(code) for code in encode_runs(masks)] == masks.sum((1, 2)).tolist()


@pytest.mark.gpu
def test_masks_on_a_gpu() -> None:
    masks = torch.rand(3, 50, 70) < 0.3
    assert encode_masks(masks.cuda()) == encode_masks(masks)
