"""Masks that are kept in a file give exactly the masks that the full logits would give."""

import errno
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torch.nn import functional as F

from ovformer.modeling.tracks import mask_store
from ovformer.modeling.tracks.mask_store import MaskSizes, MaskStore, SpillFile, encode_tubes
from ovformer.ops.mask_resize import restore_masks
from ovformer.ops.mask_rle import encode_masks

CPU = torch.device("cpu")


@pytest.fixture
def store():
    file = SpillFile()
    yield MaskStore(file)
    file.close()


def blobs(seed, shape, smoothness, bias):
    """Random logits with patches of some pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [max(1, side // smoothness) for side in shape[-2:]]
    noise = torch.randn(*shape[:2], *coarse, generator=generator) + bias
    return F.interpolate(noise, size=shape[-2:], mode="bicubic")


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    padded=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    stride=st.sampled_from([1, 2, 4]),
    cut=st.tuples(st.floats(0.3, 1.0), st.floats(0.3, 1.0)),
    scale=st.sampled_from([0.3, 0.9, 1.0, 1.7, 4.0]),
    smoothness=st.integers(1, 5),
    bias=st.sampled_from([-2.0, -0.5, 0.0, 2.0]),
)
def test_masks_are_exact_at_any_resolution(
    seed, padded, stride, cut, scale, smoothness, bias
) -> None:
    logits = blobs(seed, (2, 3, *padded), smoothness, bias)
    padded = tuple(stride * side for side in padded)
    image = tuple(max(1, int(side * part)) for side, part in zip(padded, cut, strict=True))
    output = tuple(max(1, int(side * scale)) for side in image)
    file = SpillFile()
    store = MaskStore(file)
    store.extend(logits)
    items = [(1, 0), (0, 2), (1, 2)]
    stored = store.read(items, CPU)
    file.close()
    expected = torch.stack([logits[item] for item in items])
    assert stored.sign().equal(expected.sign())
    assert ((stored == expected) | (stored.abs() == 1)).all()
    masks = [restore_masks(x, padded, image, output) > 0 for x in (stored, expected)]
    assert masks[0].equal(masks[1])


def test_logits_on_the_zero_line_and_nan_are_outside(store) -> None:
    logits = torch.tensor([[[0.0, -0.0, torch.nan, 2.0]], [[torch.nan] * 4]])
    store.extend(logits[None])
    stored = store.read([(0, 0), (0, 1)], CPU)
    assert (stored > 0).equal(logits > 0)
    assert stored[1].tolist() == [[-1.0] * 4]


def test_smooth_masks_take_a_fraction_of_their_logits(store) -> None:
    logits = torch.full((10, 90, 160), -3.0)
    logits[::2, 20:50, 30:90] = 4.5
    store.extend(logits[None])
    assert store._file.size < logits.nbytes / 8


def test_tubes_share_codes_and_are_empty_where_not_visible(store, monkeypatch) -> None:
    monkeypatch.setattr(mask_store, "_PIXELS_AT_ONCE", 2 * 32 * 32)  # two masks at a time
    logits = blobs(1, (3, 4, 8, 8), 3, 0.0)
    store.extend(logits)
    sizes = MaskSizes((32, 32), (30, 25), (45, 31))
    visible = np.array([[True, True, False], [True, False, True], [True, True, True]])
    tubes = encode_tubes(store, [2, 0, 2], visible, sizes, CPU)
    for tube, query, row in zip(tubes, [2, 0, 2], visible, strict=True):
        for code, frame, shown in zip(tube, logits, row, strict=True):
            assert code["size"] == [45, 31]
            mask = restore_masks(frame[query, None], *sizes) > 0
            assert code == encode_masks(mask & bool(shown))[0]
    assert coco_mask.area(tubes[0][2]) == 0 < coco_mask.area(tubes[2][2])
    assert tubes[0][1] is tubes[2][1]
    assert encode_tubes(store, [], visible[:0], sizes, CPU) == []


def test_an_abandoned_file_is_closed() -> None:
    file = SpillFile()
    inner = file._file
    del file
    assert inner.closed


def test_a_full_disk_is_explained(monkeypatch) -> None:
    file = SpillFile()
    file.write(np.zeros(1_000_000))
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(file, "_file", Mock(flush=Mock(side_effect=full)))
    with pytest.raises(OSError, match="No space left on device: .* 8 MB .*TMPDIR") as caught:
        file.write(np.zeros(3))
    assert caught.value.errno == errno.ENOSPC


def test_a_large_file_is_mentioned_once(monkeypatch, caplog) -> None:
    monkeypatch.setattr(mask_store, "_LARGE_FILE", 100)
    file = SpillFile()
    with caplog.at_level("INFO"):
        for _ in range(5):
            file.write(np.zeros(5))
    assert len(caplog.records) == 1
