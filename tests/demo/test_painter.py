import logging

import numpy as np
import pytest

from ovformer.demo.result_page import Thumbnails, render_result_page
from ovformer.predictor.predictions import VideoObject, VideoResult, make_object_in_frame
from support.masks import compressed_rle, rectangle

pytest.importorskip("supervision", reason="needs the extra [demo]")

from ovformer.demo.painter import COLOURS, OPACITY, Painter, choose_scale, find_font, track_colour

SIZE = (100, 120)
FRAME = np.full((*SIZE, 3), 128, np.uint8)
SQUARE = compressed_rle(rectangle(SIZE, 30, 40, 90, 80))


def test_a_track_keeps_its_colour() -> None:
    corner = compressed_rle(rectangle(SIZE, 100, 90, 120, 100))
    other = make_object_in_frame(5, 0, "other", 0.9, corner)
    colours = []
    for track, others in ((0, []), (0, [other]), (len(COLOURS), []), (1, [])):
        item = make_object_in_frame(track, 0, "dog", 0.5, SQUARE)
        colours.append(Painter()(FRAME, [*others, item])[60, 60].tolist())
    assert colours[0] == colours[1] == colours[2] != colours[3]
    expected = np.array([int(track_colour(1)[i : i + 2], 16) for i in (1, 3, 5)])
    np.testing.assert_allclose(colours[3], OPACITY * expected + (1 - OPACITY) * 128, atol=2)
    assert (FRAME == 128).all()


@pytest.mark.parametrize("name", ["красный мяч", "犬", "x" * 1000, "a\nb", "🐕", "{}%s"])
def test_any_name_can_be_drawn(name: str) -> None:
    drawn = Painter()(FRAME, [make_object_in_frame(0, 0, name, 0.5, SQUARE)])
    assert drawn.shape == FRAME.shape and (drawn[10:40] != 128).any()


def test_small_frames_are_enlarged() -> None:
    sizes = ((48, 64), (360, 640), (1, 1), (7, 4000))
    assert [choose_scale(size) for size in sizes] == [8, 1, 360, 1]
    drawn = Painter(3)(FRAME, [make_object_in_frame(0, 0, "dog", 0.5, SQUARE)])
    assert drawn.shape == Painter(3)(FRAME, []).shape == (300, 360, 3)
    assert (drawn[130:230, 100:260] != 128).any(2).all() and (drawn[260:] == 128).all()


def test_fonts(caplog) -> None:
    assert find_font("dog").endswith("DejaVuSans.ttf")
    assert find_font("красный мяч").endswith("DejaVuSans.ttf")
    find_font.cache_clear()
    with caplog.at_level(logging.WARNING):
        find_font("\U0010fffd")  # for private use: no font has it
    assert "fonts-noto-cjk" in caplog.text


def test_result_page_and_thumbnails() -> None:
    """The page shows both spans in which an object is visible, the thumbnail its largest frame."""
    small, large = rectangle(SIZE, 0, 0, 10, 10), rectangle(SIZE, 20, 20, 80, 60)
    tube = [compressed_rle(m) for m in (small, small & large, large, large, small & large)]
    item = VideoObject(0, 0, "dog & <cat>", 0.5, tube)
    result = VideoResult([item.name], SIZE, [0.0, 0.5, 1.0, 1.5, 2.0], [item])
    thumbnails = Thumbnails(result)
    for t in range(5):
        thumbnails.add_frame(t, np.full_like(FRAME, 40 * t + 40))
    thumbnail = thumbnails.images[0]
    assert max(thumbnail.shape) == 120 and thumbnail[40, 60].tolist() == [120] * 3  # of frame 2
    assert thumbnail[1, 1].tolist() == [60] * 3  # darker outside the object
    text = render_result_page("<i>", "film.mp4", result, {0: "thumbnails/000.jpg"}, ["A <note>"])
    assert "dog &amp; &lt;cat&gt;" in text and "A &lt;note&gt;" in text
    assert not any(tag in text for tag in ("<cat>", "<note>", "<i>"))
    assert "1 object in 5 frames, 2.5 s" in text
    assert text.count("<rect") == 2
    assert "<rect x=0.0 y=10.0 width=200.0" in text and "<rect x=400.0 y=10.0 width=400.0" in text


@pytest.mark.parametrize(("suffix", "tag"), [(".mp4", "<video"), (".png", "<img class=picture")])
def test_file_names_are_quoted_and_a_damaged_video_may_repeat_times(suffix: str, tag: str) -> None:
    result = VideoResult(["dog"], SIZE, [0, 0], [VideoObject(0, 0, "dog", 0.5, [SQUARE] * 2)])
    text = render_result_page("my film", f'50% "a" #1?{suffix}', result, {})
    assert f'{tag} src="50%25%20%22a%22%20%231%3F{suffix}"' in text
    assert ("in 2 frames, 0.1 s" in text) == (suffix == ".mp4")
