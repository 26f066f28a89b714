"""tools/make_report.py: what it draws and what it says."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("make_report")


def square(left: int, side: int = 8) -> dict:
    mask = np.zeros((32, 32), np.uint8, order="F")
    mask[4 : 4 + side, left : left + side] = 1
    return coco_mask.encode(mask)


def prediction(left: int, score: float, image_id: int = 1) -> dict:
    return {"image_id": image_id, "category_id": 1, "score": score, "segmentation": square(left)}


def test_the_best_prediction_of_each_object_is_drawn(tool) -> None:
    best, same = prediction(0, 0.9), prediction(1, 0.8)
    other, weak, elsewhere = prediction(20, 0.5), prediction(10, 0.2), prediction(0, 0.9, 2)
    predictions = [same, other, best, weak, elsewhere]
    assert tool.select_predictions(predictions, 1) == [best, other]


def test_right_is_the_same_class_at_the_same_place(tool) -> None:
    truth = [(3, square(0)), (5, square(20))]
    assert tool.is_right(3, square(1), truth)
    assert not tool.is_right(5, square(1), truth)
    assert not tool.is_right(3, square(4), truth)
    assert not tool.is_right(7, square(0), truth)


def test_scores_are_in_the_text_and_in_the_page(tool) -> None:
    scores = {"AP_base": 1.25, "AP50_base": 2.5, "AP_novel": 3.75, "AP50_novel": 5.0}
    control = {"AP_base": 0.0, "AP50_base": 0.0, "AP_novel": 6.25, "AP50_novel": 7.5}
    rows = [line.split()[-2:] for line in tool.score_lines(scores, control).splitlines()[1:]]
    assert rows == [["1.2", "2.5"], ["3.8", "5.0"], ["6.2", "7.5"]]
    table = tool.score_table(scores, control)
    assert all(f"<td>{ap}<td>{ap50}" in table for ap, ap50 in rows)


def test_bars_mark_novel_categories_and_take_categories_without_objects(tool) -> None:
    categories = [{"name": "red <b>", "AP50": 50.0}, {"name": "blue ring", "AP50": None}]
    base, novel = tool.category_bars(categories, {"blue ring"}).split("<div class=bar>")[1:]
    assert "red &lt;b&gt;<" in base and "4.00rem" in base and "class=novel" not in base
    assert "blue ring ★<" in novel and "0.00rem" in novel and "class=novel" in novel


def test_the_commands_can_be_pasted(tool) -> None:
    steps = [{"title": "Do", "command": ["a.py", "--x", "two words"], "seconds": 90.0}]
    text = tool.command_list(steps)
    assert "python a.py --x &#x27;two words&#x27;" in text and "1.5 minutes" in text


def test_lines_without_losses_are_left_out_of_the_curves(tool, tmp_path: Path) -> None:
    line = {"iteration": 0, **dict.fromkeys(tool.CURVES, 1.0)}
    lines = [line, {**line, "iteration": 20}, {"iteration": 21, "shapes_val/segm/AP": 3.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    tool.draw_losses(tmp_path / "metrics.json", tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes()[:4] == b"\x89PNG"
