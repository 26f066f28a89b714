"""Products and resizing of masks can be exchanged, and masks come back to the image's size."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ovformer.ops.mask_resize import mask_logits, resize_mask_features, restore_masks


def test_mask_logits_are_products_in_float32_also_under_autocast() -> None:
    torch.manual_seed(0)
    embed, features = torch.randn(2, 3, 5), torch.randn(2, 5, 4, 7)
    expected = (embed @ features.flatten(2)).unflatten(2, (4, 7))
    with torch.autocast("cpu", torch.bfloat16):
        logits = mask_logits(embed, features)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("leading", [(2,), (2, 3)])
def test_the_mask_of_resized_features_is_the_resized_mask(leading) -> None:
    torch.manual_seed(0)
    embed, features = torch.randn(*leading, 6, 8), torch.randn(*leading, 8, 17, 23)
    sizes = [(2, 3), (5, 6), (9, 12), (17, 23), (40, 31)]
    plain = mask_logits(embed, features).flatten(0, -4)
    for size, resized in zip(sizes, resize_mask_features(features, sizes), strict=True):
        assert resized.shape == (*leading, 8, *size)
        expected = F.interpolate(plain, size=size, mode="bilinear", align_corners=False)
        got = mask_logits(embed, resized).flatten(0, -4)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_restoring_crops_the_padding_and_resizes_twice() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 8, 10)
    padded = F.interpolate(logits[None], size=(32, 40), mode="bilinear", align_corners=False)[0]
    image = padded[None, :, :29, :37]
    expected = F.interpolate(image, size=(61, 50), mode="bilinear", align_corners=False)[0]
    assert restore_masks(logits, (32, 40), (29, 37), (61, 50)).equal(expected)


def test_restored_masks_equal_those_of_detectron2(reference) -> None:
    with np.load(reference("d2_contract.npz")) as recorded:
        logits = torch.from_numpy(recorded["points.input"])[0]
        expected = recorded["sem_seg_postprocess"]
    restored = restore_masks(logits, tuple(logits.shape[1:]), (6, 8), (12, 15))
    np.testing.assert_allclose(restored, expected, rtol=0, atol=1e-6)
