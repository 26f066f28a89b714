"""tools/make_report.py: what it draws and what it says."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from pycocotools import mask as coco_mask


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("make_report")


@pytest.fixture(scope="module")
def images(tool):
    return importlib.import_module("ovformer_tools.reports.images")


@pytest.fixture(scope="module")
def films(tool):
    return importlib.import_module("ovformer_tools.reports.films")


@pytest.fixture(scope="module")
def tried_film(tool):
    return importlib.import_module("ovformer_tools.reports.tried_film")


def square(left: int, side: int = 8) -> dict:
    mask = np.zeros((32, 32), np.uint8, order="F")
    mask[4 : 4 + side, left : left + side] = 1
    return coco_mask.encode(mask)


def prediction(left: int, score: float, image_id: int = 1) -> dict:
    return {"image_id": image_id, "category_id": 1, "score": score, "segmentation": square(left)}


def test_the_best_prediction_of_each_object_is_drawn(images) -> None:
    best, same = prediction(0, 0.9), prediction(1, 0.8)
    other, weak, elsewhere = prediction(20, 0.5), prediction(10, 0.2), prediction(0, 0.9, 2)
    predictions = [same, other, best, weak, elsewhere]
    assert images.select_predictions(predictions, 1) == [best, other]


def test_right_is_the_same_class_at_the_same_place(images) -> None:
    truth = [(3, square(0)), (5, square(20))]
    assert images.is_right(3, square(1), truth)
    assert not images.is_right(5, square(1), truth)
    assert not images.is_right(3, square(4), truth)
    assert not images.is_right(7, square(0), truth)


def test_scores_are_in_the_text_and_in_the_page(tool) -> None:
    scores = {"AP_base": 1.25, "AP50_base": 2.5, "AP_novel": 3.75, "AP50_novel": 5.0}
    control = {"AP_base": 0.0, "AP50_base": 0.0, "AP_novel": 6.25, "AP50_novel": 7.5}
    rows = [
        line.split()[-2:]
        for line in tool.score_lines(tool.score_rows(scores, control)).splitlines()[1:]
    ]
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


def test_lines_without_losses_are_left_out_of_the_curves(images, tmp_path: Path) -> None:
    line = {"iteration": 0, **dict.fromkeys(images.CURVES, 1.0)}
    lines = [line, {**line, "iteration": 20}, {"iteration": 21, "shapes_val/segm/AP": 3.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    images.draw_losses(tmp_path / "metrics.json", tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes()[:4] == b"\x89PNG"


def test_a_data_set_may_have_nothing_to_draw(images, films, tmp_path: Path, monkeypatch) -> None:
    """As the quick start's, with --fast and some seeds."""
    metadata = SimpleNamespace(
        class_groups={"novel": [1]},
        thing_classes=["red circle", "blue ring"],
        thing_dataset_id_to_contiguous_id={1: 0, 2: 1},
    )
    for module in (images, films):
        monkeypatch.setattr(module, "MetadataCatalog", {"shapes": metadata})
        monkeypatch.setattr(module, "load_dataset", lambda name: [])
    images.draw_predictions("shapes", [], tmp_path / "images.png")
    films.draw_films("shapes", {"a model": []}, tmp_path / "films.png")
    for name in ("images.png", "films.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_scores_of_videos_are_percentages_of_each_group_and_model(tool) -> None:
    scores = {"base": {"AP": 0.5, "AP50": 0.625}, "novel": {"AP": 0.25, "AP50": None}}
    rows = tool.video_rows({"zero-shot": scores, "clip-trained": scores})
    assert rows == [
        ("zero-shot, base", 50.0, 62.5),
        ("clip-trained, base", 50.0, 62.5),
        ("zero-shot, novel", 25.0, 0.0),
        ("clip-trained, novel", 25.0, 0.0),
    ]
    table = tool.video_table({"zero-shot": scores})
    assert "<tr><td>zero-shot, base<td>50.0<td>62.5" in table


def test_the_best_tube_of_each_object_is_drawn(films) -> None:
    def tube(left: int, score: float, video_id: int = 1) -> dict:
        masks = [square(left), None, square(left + 2)]
        return {"video_id": video_id, "category_id": 1, "score": score, "segmentations": masks}

    best, same, other = tube(0, 0.9), tube(1, 0.8), tube(20, 0.5)
    others = [tube(10, 0.2), tube(0, 0.9, 2)]
    assert films.select_tubes([same, other, best, *others], 1) == [best, other]
    truth = [(3, best["segmentations"]), (5, other["segmentations"])]
    assert films.is_right(3, same["segmentations"], truth)
    assert not films.is_right(5, same["segmentations"], truth)


def test_objects_of_a_video_are_its_tracks(films) -> None:
    frames = [[{"id": 7, "category_id": 2, "segmentation": square(0)}], []]
    assert films.truth_tubes({"length": 2, "annotations": frames}) == [(2, [square(0), None])]


def test_tubes_are_numbered_like_the_true_ones(films) -> None:
    truth = [[square(0), square(2)], [square(20), None]]
    found = [[square(10), square(12)], [square(19), None], [square(1), square(2)], [None, None]]
    assert films.like_truth(found, truth) == [2, 1, 0, 3]
    assert films.like_truth(found[:1], []) == [0] and films.like_truth([], truth) == []


def test_a_strip_names_each_track_once_and_outlines_it_where_it_is_seen(
    films, tmp_path: Path
) -> None:
    names = [str(tmp_path / f"{t}.png") for t in range(3)]
    for name in names:
        assert cv2.imwrite(name, np.zeros((32, 32, 3), np.uint8))
    figure, axes = plt.subplots(1, 4)
    tracks = [([square(0), None, square(4)], "red circle", "green")]
    films.draw_strip(axes, {"length": 3, "file_names": names}, "a model", tracks, [2])
    assert [len(axis.collections) for axis in axes] == [1, 0, 1, 0]
    assert to_hex(axes[0].collections[0].get_edgecolor()[0]) == films.COLOURS[2]
    assert [text.get_text() for text in axes[3].texts][1:] == ["red circle"]
    plt.close(figure)


def film_truth(tmp_path: Path) -> dict:
    categories = [{"id": 1, "name": "red circle"}, {"id": 2, "name": "blue <ring>"}]
    tubes = [[square(0), square(2)], [square(20), None], [None, square(10)]]
    annotations = [
        {"category_id": category, "segmentations": tube}
        for category, tube in zip((1, 2, 1), tubes, strict=True)
    ]
    return {"categories": categories, "annotations": annotations}


def test_objects_of_a_film_are_named_by_what_overlaps_them_most(tried_film, tmp_path) -> None:
    truth = film_truth(tmp_path)
    found = {"categories": [{"id": 7, "name": "red circle"}], "annotations": []}
    assert [row[1] for row in tried_film.named_objects(truth, found)] == ["", "", ""]
    for tube, score in (
        ([square(1), square(2)], 0.9),
        ([square(0), square(2)], 0.5),
        ([square(20), None], 0.4),
        ([None, square(16)], 0.8),
    ):
        annotation = {"category_id": 7, "segmentations": tube, "score": score}
        found["annotations"].append(annotation)
    rows = tried_film.named_objects(truth, found)
    assert [row[:3] for row in rows] == [
        ("red circle", "red circle", 0.5),
        ("blue <ring>", "red circle", 0.4),
        ("red circle", "", 0.0),
    ]
    assert tried_film.count(rows) == "1 / 2 / 3"


def test_the_page_has_the_film_and_a_row_for_each_object(tried_film, tmp_path) -> None:
    truth = film_truth(tmp_path)
    annotation = {"category_id": 2, "segmentations": [square(20), None], "score": 0.4}
    (tmp_path / "truth.json").write_text(json.dumps(as_text(truth)))
    found = {"categories": truth["categories"], "annotations": [annotation]}
    (tmp_path / "annotations.json").write_text(json.dumps(as_text(found)))
    (tmp_path / "film_objects.mp4").write_bytes(b"film")
    (tmp_path / "poster.jpg").write_bytes(b"poster")
    (tmp_path / "others").mkdir()
    found["categories"] = [{"id": 2, "name": "red circle"}]
    (tmp_path / "others" / "annotations.json").write_text(json.dumps(found))
    page = tried_film.film_section(tmp_path, tmp_path / "others", tmp_path / "truth.json")
    assert "data:video/mp4;base64,ZmlsbQ==" in page and "data:image/jpeg;base64,cG9zdGVy" in page
    assert (
        "<td>blue &lt;ring&gt;<td class=right>blue &lt;ring&gt; 0.40<td class=wrong>red circle 0.40"
        in page
    )
    assert page.count("<td class=wrong>not found") == 4
    assert "<td>1 / 1 / 3<td>0 / 1 / 3" in page
    (tmp_path / "other_objects.mp4").write_bytes(b"film")
    with pytest.raises(ValueError, match="expected the film of one prediction, found 2"):
        tried_film.film_section(tmp_path, tmp_path / "others", tmp_path / "truth.json")


def as_text(content: dict) -> dict:
    """The same with the codes of masks as text, as in files."""
    for annotation in content["annotations"]:
        for mask in filter(None, annotation["segmentations"]):
            mask["counts"] = mask["counts"].decode()
    return content
