"""tools/make_report.py: its figures and its HTML."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from ovformer_tools.reports import images, output_video, video_strips
from ovformer_tools.reports.output_video import Match, NamingRun, OutputVideo
from support.masks import compressed_rle, rectangle

TOOL = "make_report"
PNG = b"\x89PNG"


def square(left: int | None) -> dict | None:
    return left if left is None else compressed_rle(rectangle((32, 32), left, 4, left + 8, 12))


def prediction(left: int, score: float, image_id: int = 1) -> dict:
    return {"image_id": image_id, "category_id": 1, "score": score, "segmentation": square(left)}


def tube(left: int, score: float, video_id: int = 1) -> dict:
    masks = [square(left), None, square(left + 2)]
    return {"video_id": video_id, "category_id": 1, "score": score, "segmentations": masks}


@pytest.mark.parametrize(
    ("select", "make"),
    [(images.select_predictions, prediction), (video_strips.select_tubes, tube)],
)
def test_the_best_prediction_of_each_object_is_drawn(select, make) -> None:
    best, same, other = make(0, 0.9), make(1, 0.8), make(20, 0.5)
    weak, elsewhere = make(10, 0.2), make(0, 0.9, 2)
    assert select([same, other, best, weak, elsewhere], 1) == [best, other]


@pytest.mark.parametrize(
    ("is_right", "shape"),
    [(images.is_right, square), (video_strips.is_right, lambda left: [square(left), None])],
)
def test_right_is_the_same_class_at_the_same_place(is_right, shape) -> None:
    truth = [(3, shape(0)), (5, shape(20))]
    assert is_right(3, shape(1), truth)
    for label, left in ((5, 1), (3, 4), (7, 0)):
        assert not is_right(label, shape(left), truth)


def test_figures_without_anything_to_draw(tmp_path: Path, monkeypatch) -> None:
    """A few images, as those of the quick start with --fast, may all be unsuitable."""
    metadata = SimpleNamespace(
        class_groups={"novel": [1]},
        thing_classes=["red circle", "blue ring"],
        thing_dataset_id_to_contiguous_id={1: 0, 2: 1},
    )
    for module in (images, video_strips):
        monkeypatch.setattr(module, "MetadataCatalog", {"shapes": metadata})
        monkeypatch.setattr(module, "load_dataset", lambda name: [])
    images.draw_predictions("shapes", [], tmp_path / "images.png")
    video_strips.draw_video_strips("shapes", {"a model": []}, tmp_path / "strips.png")
    line = {"iteration": 0, **dict.fromkeys(images.CURVES, 1.0)}
    lines = [line, {**line, "iteration": 20}, {"iteration": 21, "shapes_val/segm/AP": 3.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    images.draw_losses(tmp_path / "metrics.json", tmp_path / "losses.png")
    for name in ("images.png", "strips.png", "losses.png"):
        assert (tmp_path / name).read_bytes()[:4] == PNG


def test_scores_are_in_percent(tool) -> None:
    scores = {"AP_base": 1.25, "AP50_base": 2.5, "AP_novel": 3.75, "AP50_novel": 5.0}
    control = {"AP_base": 0.0, "AP50_base": 0.0, "AP_novel": 6.25, "AP50_novel": 7.5}
    lines = tool.format_scores(tool.list_image_scores(scores, control)).splitlines()[1:]
    assert [line.split()[-2:] for line in lines] == [["1.2", "2.5"], ["3.8", "5.0"], ["6.2", "7.5"]]
    scores = {"base": {"AP": 0.5, "AP50": 0.625}, "novel": {"AP": 0.25, "AP50": None}}
    assert tool.list_video_scores({"zero-shot": scores, "clip-trained": scores}) == [
        ("zero-shot, base", 50.0, 62.5),
        ("clip-trained, base", 50.0, 62.5),
        ("zero-shot, novel", 25.0, 0.0),
        ("clip-trained, novel", 25.0, 0.0),
    ]


def test_the_report_shows_its_content_and_escapes_it(tool) -> None:
    runs = [
        NamingRun(9, [Match("red <b>", "red <b>", 0.4), Match("blue ring")]),
        NamingRun(36, [Match("red <b>", "green", 0.3), Match("blue ring")]),
    ]
    report = tool.render_report(
        dataset="shapes_val",
        image_scores=[("base", 1.25, 2.5)],
        categories=[{"name": "red <b>", "AP50": 50.0}, {"name": "blue ring", "AP50": None}],
        novel_names={"blue ring"},
        video_scores=[("zero-shot, base", 50.0, 62.5)],
        video=OutputVideo("ZmlsbQ==", "cG9zdGVy", runs),
        steps=[{"title": "Do", "command": "a.py --x 'two words' <c>", "seconds": 90.0}],
        **dict.fromkeys(("predictions", "strips", "losses", "clip_losses"), "iVBO"),
    )
    assert "<td>base<td>1.2<td>2.5" in report and "<td>zero-shot, base<td>50.0<td>62.5" in report
    base, novel = report.split("<div class=bar>")[1:]
    assert "red &lt;b&gt;<" in base and "4.00rem" in base and "class=novel" not in base
    assert "blue ring ★<" in novel and "0.00rem" in novel and "class=novel" in novel
    assert "data:video/mp4;base64,ZmlsbQ==" in report and "jpeg;base64,cG9zdGVy" in report
    assert report.count("data:image/png;base64,iVBO") == 4 and "<b>" not in report
    table = re.sub(r"\s*\n\s*", "", report[report.index("<th>of 9 names<th>of 36 names") :])
    assert "<td>red &lt;b&gt;<td class=right>red &lt;b&gt; 0.40<td class=wrong>green 0.30" in table
    assert table.count("<td class=wrong>not found") == 2
    assert "<td>1 / 1 / 2<td>0 / 1 / 2" in table
    assert "python a.py --x &#39;two words&#39; &lt;c&gt;" in report and "1.5 minutes" in report


def test_colours_follow_the_true_tubes() -> None:
    frames = [[{"id": 7, "category_id": 2, "segmentation": square(0)}], []]
    record = {"length": 2, "annotations": frames}
    assert video_strips.truth_tubes(record) == [(2, [square(0), None])]
    truth = [[square(0), square(2)], [square(20), None]]
    found = [[square(10), square(12)], [square(19), None], [square(1), square(2)], [None, None]]
    assert video_strips.number_like_truth(found, truth) == [2, 1, 0, 3]
    assert video_strips.number_like_truth(found[:1], []) == [0]
    assert video_strips.number_like_truth([], truth) == []


def test_a_strip_names_each_track_once_and_outlines_it_where_it_is_visible(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{t}.png") for t in range(3)]
    for name in names:
        assert cv2.imwrite(name, np.zeros((32, 32, 3), np.uint8))
    figure, axes = plt.subplots(1, 4)
    tracks = [([square(0), None, square(4)], "red circle", "green")]
    record = {"length": 3, "file_names": names}
    video_strips.draw_strip(axes, record, "a model", tracks, [2])
    assert [len(axis.collections) for axis in axes] == [1, 0, 1, 0]
    assert to_hex(axes[0].collections[0].get_edgecolor()[0]) == video_strips.COLOURS[2]
    assert [text.get_text() for text in axes[3].texts][1:] == ["red circle"]
    plt.close(figure)


def test_objects_are_matched_with_what_overlaps_them_most(tmp_path: Path) -> None:
    def write(name: str, names: list[str], *objects: tuple) -> dict:
        """Write annotations of squares: index of the name, places (None: absent), score."""
        annotations = [
            {"category_id": label, "segmentations": list(map(square, places)), "score": score}
            for label, places, score in objects
        ]
        categories = [{"id": n, "name": name} for n, name in enumerate(names)]
        content = {"categories": categories, "annotations": annotations}
        (tmp_path / name).write_text(json.dumps(content))
        return content

    (tmp_path / "others").mkdir()
    objects = (0, (0, 2), 1), (1, (20, None), 1), (0, (None, 10), 1)
    truth = write("truth.json", ["red circle", "blue ring"], *objects)
    objects = (0, (1, 2), 0.9), (0, (0, 2), 0.5), (0, (20, None), 0.4), (0, (None, 16), 0.8)
    found = write("annotations.json", ["red circle"], *objects)
    write("others/annotations.json", ["dog"])
    assert output_video.match_objects(truth, found) == [
        Match("red circle", "red circle", 0.5),
        Match("blue ring", "red circle", 0.4),
        Match("red circle"),
    ]
    (tmp_path / "poster.jpg").write_bytes(b"poster")
    (tmp_path / "my_objects.mp4").write_bytes(b"film")
    paths = (tmp_path, tmp_path / "others", tmp_path / "truth.json")
    video = output_video.read_output_video(*paths)
    assert (video.mp4, video.poster) == ("ZmlsbQ==", "cG9zdGVy")
    numbers = [(run.num_right, run.num_found, len(run.matches)) for run in video.runs]
    assert numbers == [(1, 2, 3), (0, 0, 3)]
    (tmp_path / "other_objects.mp4").write_bytes(b"film")
    with pytest.raises(ValueError, match=r"_objects\.mp4, found 2"):
        output_video.read_output_video(*paths)


def test_an_invalid_mask_is_an_error_that_names_the_file(tool, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**prediction(0, 1), "segmentation": {"size": [1], "counts": ""}}]))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        tool.read_predictions(path)
