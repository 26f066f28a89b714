"""Files of predictions."""

import json
from pathlib import Path

import pytest
import torch
from pycocotools import mask as coco_mask

from ovformer.evaluation.results_io import encode_masks, read_results


def test_masks_survive_encoding() -> None:
    masks = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    rles = json.loads(json.dumps(encode_masks(masks)))
    assert torch.equal(torch.from_numpy(coco_mask.decode(rles)).permute(2, 0, 1).bool(), masks)
    assert encode_masks(masks[:0]) == []


def test_what_is_no_result_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--eval-only"):
        read_results(tmp_path / "results.json")
    path = tmp_path / "results.json"
    path.write_text('[{"score": 0.')
    with pytest.raises(ValueError, match="not valid JSON"):
        read_results(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="expected a list"):
        read_results(path)
