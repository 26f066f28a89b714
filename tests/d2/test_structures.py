"""Boxes, masks, image lists and instances, on the selected back-end."""

import copy
import pickle

import numpy as np
import pytest
import torch

from ovformer.d2 import BitMasks, Boxes, BoxMode, ImageList, Instances


def test_instances_behave_as_recorded(recorded) -> None:
    wanted = recorded["instances"]
    instances = Instances((1, 1), x=torch.arange(3.0))
    assert len(instances) == wanted["len"]
    assert len(instances[0]) == wanted["int_index_len"]
    assert instances[-1].x.item() == wanted["neg_index"]
    assert instances.has("x") == wanted["has"]
    assert len(Instances.cat([instances, instances])) == wanted["cat_len"]
    wrong = {
        "error i[3]": lambda: instances[3],
        'error setattr(i,"x",torch.zeros(2))': lambda: instances.set("x", torch.zeros(2)),
        "error len(Instances((1,1)))": lambda: len(Instances((1, 1))),
    }
    for name, call in wrong.items():
        with pytest.raises(Exception) as error:
            call()
        assert type(error.value).__name__ == wanted[name]


def test_instances_index_all_fields() -> None:
    instances = Instances(
        (8, 9),
        boxes=Boxes([[0, 0, 1, 1], [2, 2, 4, 5]]),
        masks=BitMasks(torch.eye(2)[:, None].repeat(1, 8, 1)),
        names=["a", "b"],
    )
    kept = instances[1:]
    assert kept.image_size == (8, 9) and kept.names == ["b"]
    assert kept.boxes.tensor.tolist() == [[2, 2, 4, 5]]
    joined = Instances.cat([kept, instances])
    assert joined.names == ["b", "a", "b"] and len(joined.boxes) == 3 and len(joined.masks) == 3
    joined.remove("names")
    assert set(joined.get_fields()) == {"boxes", "masks"}
    with pytest.raises(AttributeError, match="names"):
        _ = joined.names
    joined = joined[torch.tensor([True, False, True])]
    assert joined.boxes.tensor.tolist() == [[2, 2, 4, 5], [2, 2, 4, 5]] and len(joined.masks) == 2
    for other in (copy.deepcopy(instances), pickle.loads(pickle.dumps(instances))):
        assert other.names == ["a", "b"] and other.image_size == (8, 9)
    assert instances.to("meta").boxes.device.type == "meta"
    assert "num_instances=2" in str(instances) and "image_height=8" in str(instances)
    with pytest.raises(NotImplementedError):
        iter(instances)
    with pytest.raises(TypeError):
        Instances((8, 9), count=2)
    with pytest.raises(AssertionError):
        Instances.cat([instances, Instances((1, 1), boxes=Boxes([]))])


def test_image_lists(recorded) -> None:
    images = [torch.from_numpy(recorded[f"imagelist.{i}"]) for i in range(2)]
    padded = ImageList.from_tensors(images, 8)
    np.testing.assert_array_equal(padded.tensor, recorded["imagelist.tensor"])
    assert [list(size) for size in padded.image_sizes] == recorded["imagelist.sizes"]
    assert len(padded) == 2 and torch.equal(padded[1], images[1])
    flat = [torch.zeros(5, 7, dtype=torch.uint8), torch.zeros(3, 9, dtype=torch.uint8)]
    padded = ImageList.from_tensors(flat, pad_value=3)
    assert padded.tensor.shape == (2, 5, 9) and padded.tensor.dtype == torch.uint8
    assert padded.tensor.sum() == 3 * (2 * 5 * 9 - 5 * 7 - 3 * 9)
    assert padded.to(torch.float32).tensor.dtype == torch.float32
    square = {"square_size": 32, "size_divisibility": 1}
    squared = ImageList.from_tensors(flat, 8, padding_constraints=square)
    assert squared.tensor.shape[1:] == (32, 32)
    for wrong in ([], [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)]):
        with pytest.raises(AssertionError):
            ImageList.from_tensors(wrong)


def test_bitmasks(recorded) -> None:
    empty = BitMasks(torch.zeros(2, 5, 6))
    assert empty.get_bounding_boxes().tensor.tolist() == recorded["bitmasks.empty_boxes"]
    assert empty.nonempty().tolist() == recorded["bitmasks.nonempty"]
    assert len(BitMasks(torch.zeros(0, 5, 6)).get_bounding_boxes()) == 0
    pixels = torch.zeros(2, 6, 7, dtype=torch.uint8)
    pixels[0, 1:4, 1:5] = pixels[1, 0, 0] = 1
    masks = BitMasks(pixels)
    assert masks.tensor.dtype == torch.bool and tuple(masks.image_size) == (6, 7)
    assert masks.get_bounding_boxes().tensor[0].tolist() == [1, 1, 5, 4]
    full = BitMasks(np.ones((1, 3, 4), np.uint8)).get_bounding_boxes()
    assert full.tensor.tolist() == [[0, 0, 4, 3]] and full.tensor.dtype == torch.float32
    assert len(masks[1]) == 1 and len(masks[:1]) == 1 and len(masks[masks.nonempty()]) == 2
    assert len(BitMasks.cat([masks, masks])) == 4
    assert [mask.shape for mask in masks] == [(6, 7), (6, 7)]
    with pytest.raises(AssertionError):
        BitMasks(torch.zeros(5, 6))


def test_box_modes(recorded) -> None:
    wanted, modes = recorded["boxmode"], (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert [int(mode) for mode in BoxMode] == [0, 1, 2, 3, 4]
    assert BoxMode.convert([1, 2, 3, 4], *modes) == wanted["xywh->xyxy"]
    assert BoxMode.convert(wanted["xywh->xyxy"], *modes[::-1]) == wanted["xyxy->xywh"]
    assert BoxMode.convert((1.0, 2.0, 3.0, 4.0), *modes) == (1.0, 2.0, 4.0, 6.0)
    array = np.array([[1.0, 2.0, 3.0, 4.0]])
    for boxes in (array, torch.from_numpy(array)):
        converted = BoxMode.convert(boxes, *modes)
        assert type(converted) is type(boxes) and converted.dtype == boxes.dtype
        assert converted.tolist() == [[1, 2, 4, 6]] and boxes.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("box", "from_mode", "to_mode", "error"),
    [
        ([1, 2, 3], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS, AssertionError),
        ([1, 2, 3, 4], BoxMode.XYXY_REL, BoxMode.XYXY_ABS, AssertionError),
        ([1, 2, 3, 4], BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS, NotImplementedError),
    ],
)
def test_other_box_modes_are_errors(box, from_mode, to_mode, error) -> None:
    with pytest.raises(error):
        BoxMode.convert(box, from_mode, to_mode)


def test_boxes() -> None:
    boxes = Boxes([[-2, 1, 4, 9], [3, 3, 3, 5]])
    assert boxes.nonempty().tolist() == [True, False]
    assert boxes.nonempty(threshold=7).tolist() == [False, False]
    assert len(boxes[1]) == 1 and len(boxes[:1]) == 1 and len(boxes[boxes.nonempty()]) == 1
    assert len(Boxes.cat([boxes, boxes])) == 4 and len(Boxes.cat([])) == 0
    assert [box.shape for box in boxes] == [(4,), (4,)]
    assert Boxes(torch.zeros(0, 4)).tensor.shape == Boxes([]).tensor.shape == (0, 4)
    assert Boxes(torch.zeros(1, 4, dtype=torch.float64)).tensor.dtype == torch.float32
    with pytest.raises(AssertionError):
        Boxes([[1, 2, 3]])
