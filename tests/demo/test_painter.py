import logging

import numpy as np
import pytest

from ovformer.demo.result_page import Thumbnails, render_result_page
from ovformer.predictor.predictions import VideoObject, VideoResult, make_object_in_frame
from support.masks import compressed_rle

pytest.importorskip("supervision", reason="needs the extra [demo]")

from ovformer.demo.painter import COLOURS, OPACITY, Painter, choose_scale, find_font, track_colour


def square(size: tuple[int, int] = (100, 120)) -> dict:
    mask = np.zeros(size, bool)
    mask[40:80, 30:90] = True
    return compressed_rle(mask)


def test_a_track_keeps_its_colour() -> None:
    frame = np.full((100, 120, 3), 128, np.uint8)
    painter = Painter()
    corner = np.zeros((100, 120), bool)
    corner[90:, 100:] = True
    drawn = {}
    for track in (0, 1, len(COLOURS)):
        for others in ([], [make_object_in_frame(5, 0, "other", 0.9, compressed_rle(corner))]):
            item = make_object_in_frame(track, 0, "dog", 0.5, square())
            image = painter(frame, [*others, item])
            drawn.setdefault(track, []).append(image[60, 60].tolist())
    assert drawn[0][0] == drawn[0][1] == drawn[len(COLOURS)][0] != drawn[1][0]
    expected = [int(track_colour(1)[i : i + 2], 16) for i in (1, 3, 5)]
    wanted = OPACITY * np.array(expected) + (1 - OPACITY) * 128
    np.testing.assert_allclose(drawn[1][0], wanted, atol=2)
    assert (frame == 128).all()


@pytest.mark.parametrize("name", ["красный мяч", "犬", "x" * 1000, "a\nb", "🐕", "{}%s"])
def test_any_name_can_be_drawn(name: str) -> None:
    frame = np.full((100, 120, 3), 128, np.uint8)
    drawn = Painter()(frame, [make_object_in_frame(0, 0, name, 0.5, square())])
    assert drawn.shape == frame.shape and (drawn[10:40] != 128).any()


def test_small_frames_are_enlarged() -> None:
    assert [choose_scale(size) for size in ((48, 64), (360, 640), (1, 1), (7, 4000))] == [
        8,
        1,
        360,
        1,
    ]
    frame = np.full((100, 120, 3), 128, np.uint8)
    drawn = Painter(3)(frame, [make_object_in_frame(0, 0, "dog", 0.5, square())])
    assert drawn.shape == (300, 360, 3)
    assert (drawn[130:230, 100:260] != 128).any(2).all() and (drawn[260:] == 128).all()
    assert Painter(3)(frame, []).shape == (300, 360, 3)


def test_fonts(caplog) -> None:
    assert find_font("dog").endswith("DejaVuSans.ttf")
    assert find_font("красный мяч").endswith("DejaVuSans.ttf")
    find_font.cache_clear()
    with caplog.at_level(logging.WARNING):
        find_font("\U0010fffd")  # for private use: no font has it
    assert "fonts-noto-cjk" in caplog.text


def test_result_page_and_thumbnails() -> None:
    """The page shows both spans in which an object is visible, the thumbnail its largest frame."""
    small, large, empty = np.zeros((3, 100, 120), bool)
    small[:10, :10] = True
    large[20:60, 20:80] = True
    tube = [compressed_rle(m) for m in (small, empty, large, large, empty)]
    result = VideoResult(
        ["dog & <cat>"],
        (100, 120),
        [0.0, 0.5, 1.0, 1.5, 2.0],
        [VideoObject(0, 0, "dog & <cat>", 0.5, tube)],
    )
    thumbnails = Thumbnails(result)
    for t in range(5):
        thumbnails.add_frame(t, np.full((100, 120, 3), 40 * t + 40, np.uint8))
    thumbnail = thumbnails.images[0]
    assert max(thumbnail.shape) == 120 and thumbnail[40, 60].tolist() == [120] * 3  # of frame 2
    assert thumbnail[1, 1].tolist() == [60] * 3  # darker outside the object
    text = render_result_page("<i>", "film.mp4", result, {0: "thumbnails/000.jpg"}, ["A <note>"])
    assert "dog &amp; &lt;cat&gt;" in text and "A &lt;note&gt;" in text
    assert not any(tag in text for tag in ("<cat>", "<note>", "<i>"))
    assert "1 object in 5 frames, 2.5 s" in text
    assert '<video src="film.mp4"' in text and text.count("<rect") == 2
    assert "<rect x=0.0 y=10.0 width=200.0" in text and "<rect x=400.0 y=10.0 width=400.0" in text


@pytest.mark.parametrize("suffix", [".mp4", ".png"])
def test_file_names_are_quoted_and_a_damaged_video_may_repeat_times(suffix: str) -> None:
    item = VideoObject(0, 0, "dog", 0.5, [square()] * 2)
    result = VideoResult(["dog"], (100, 120), [0.0, 0.0], [item])
    text = render_result_page("my film", f'50% "a" #1?{suffix}', result, {})
    assert f'src="50%25%20%22a%22%20%231%3F{suffix}"' in text
    assert ("in 2 frames, 0.1 s" in text) == (suffix == ".mp4")
