"""Videos and pictures of all kinds, good and bad."""

import io
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovformer.data.files.video_files import (
    SELF_CONTAINED,
    Frame,
    VideoSource,
    iterate_frames,
    read_untrusted_image,
    thin_frames,
    to_rgb,
)
from ovformer.data.files.video_writer import VideoWriter
from ovformer.files import temporary_name

av = pytest.importorskip("av", reason="needs the extra [demo]")


def ramp(count: int, size: tuple[int, int] = (32, 48)) -> list[np.ndarray]:
    """Frames whose brightness tells their number, with a bright top left quarter."""
    frames = []
    for t in range(count):
        frame = np.full((*size, 3), 20 + 4 * t, np.uint8)
        frame[: size[0] // 2, : size[1] // 2] = 240
        frames.append(frame)
    return frames


def encode(path: Path, frames: Sequence[np.ndarray], times: Sequence[float] = (), **how: Any):
    """Write a video."""
    format_ = how.get("format", "rgb24")
    with av.open(str(path), "w", options=how.get("muxer", {})) as container:
        stream = container.add_stream(how.get("codec", "libx264"), rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = how.get("pix_fmt", "yuv420p")
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = how.get("options", {})
        if how.get("rotation"):
            stream.set_display_rotation(how["rotation"])
        for t, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format=format_)
            frame.pts = round(1000 * (times[t] if times else t / 10))
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def brightness(frames: Sequence[Frame]) -> list[int]:
    return [int(frame.image[-2, -2].mean()) for frame in frames]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("16 bits.mkv", {"codec": "ffv1", "pix_fmt": "gbrp16le"}),
        ("alpha.mov", {"codec": "png", "pix_fmt": "rgba"}),
        ("grey 16 bits.mkv", {"codec": "ffv1", "pix_fmt": "gray16le"}),
    ],
)
def test_formats(tmp_path: Path, name: str, how: dict) -> None:
    source = VideoSource(encode(tmp_path / name, ramp(8), **how), SELF_CONTAINED)
    frames = list(source)
    assert len(frames) == 8 and not source.is_still
    assert source.num_frames == (8 if name != "a.avi" else 800)  # which counts empty places
    assert {frame.image.shape for frame in frames} == {(32, 48, 3)}
    assert {frame.image.dtype for frame in frames} == {np.dtype(np.uint8)}
    np.testing.assert_allclose(brightness(frames), range(20, 52, 4), atol=6)
    assert frames[0].image[2, 2].min() > 230
    np.testing.assert_allclose([f.time for f in frames], np.arange(8) / 10, atol=0.002)
    assert [frame.number for frame in source] == list(range(8))  # a second time


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-2, 2)), (180, (-2, -2)), (-90, (2, -2))])
def test_rotation_is_applied(tmp_path: Path, rotation: int, corner: tuple[int, int]) -> None:
    """Where the bright quarter, at the top left in the file, has to be seen."""
    path = encode(tmp_path / "a.mp4", ramp(2), rotation=rotation)
    image = next(iter(VideoSource(path))).image
    assert image.shape == ((32, 48, 3) if rotation == 180 else (48, 32, 3))
    assert image[corner].min() > 200
    others = [image[y, x].max() for y in (2, -2) for x in (2, -2) if (y, x) != corner]
    assert max(others) < 60


def test_a_video_that_is_cut_off(tmp_path: Path, caplog) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(30)]
    path = encode(
        tmp_path / "a.mp4", noise, muxer={"movflags": "faststart"}, options={"g": "5", "bf": "0"}
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    frames = list(VideoSource(path))
    assert 10 < len(frames) < 30
    assert re.search(rf"a\.mp4: {len(frames)} frames .* 30\. ", caplog.text)
    path.write_bytes(content[:200])
    with pytest.raises(ValueError, match=r"a\.mp4: "):
        list(VideoSource(path))


def test_files_that_are_not_videos(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.mp4"):
        VideoSource(tmp_path / "nothing.mp4")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'folder'}.*.png"):
        VideoSource(tmp_path / "folder")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    (tmp_path / "text.mp4").write_bytes(b"hello" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    (tmp_path / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "bomb.ppm").write_bytes(b"P6 20000 20000 255\n")
    (tmp_path / "large.ppm").write_bytes(b"P6 9000 9000 255\n")
    for name, message in {
        "sound.wav": "has no pictures",
        "text.mp4": "neither a video nor a picture",
        "empty.mp4": "neither a video nor a picture",
        "bad.png": r"bad\.png: .*decoded",
        "postscript.png": "can't be decoded.*cannot identify",  # a program; none is started
        "bomb.ppm": "can't be decoded.*400000000 pixels",
        "large.ppm": "can't be decoded.*9000 x 9000 pixels",
    }.items():
        with pytest.raises(ValueError, match=message):
            list(VideoSource(tmp_path / name))


def test_files_that_name_others_are_not_followed(tmp_path: Path) -> None:
    encode(tmp_path / "other.mp4", ramp(3))
    playlist = tmp_path / "playlist.mp4"
    playlist.write_text("ffconcat version 1.0\nfile other.mp4\n")
    assert len(list(VideoSource(playlist))) == 3  # one's own playlist
    with pytest.raises(ValueError, match="neither a video nor a picture"):
        VideoSource(playlist, SELF_CONTAINED)


def test_frames_that_grow_are_refused(tmp_path: Path) -> None:
    """A stream of which only the first frame is small."""
    path = tmp_path / "a.mjpeg.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for t, size in enumerate([(32, 48), (64, 96)]):
            buffer = io.BytesIO()
            Image.new("RGB", size[::-1]).save(buffer, "jpeg")
            packet = av.Packet(buffer.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, t, t, Fraction(1, 10)
            container.mux(packet)
    assert [frame.image.shape for frame in VideoSource(path)] == [(32, 48, 3), (64, 96, 3)]
    frames = iter(VideoSource(path, max_pixels=32 * 48))
    assert next(frames).image.shape == (32, 48, 3)
    with pytest.raises(ValueError, match="a frame of 64 x 96 pixels .* at most 1536"):
        next(frames)


def test_folders_are_in_natural_order(tmp_path: Path) -> None:
    ordered = ["9.png", "frame1.png", "frame2.png", "frame10.png", "²1.png"]
    for name, frame in zip(sorted(ordered), ramp(5), strict=True):
        Image.fromarray(frame).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    source = VideoSource(tmp_path)
    assert source.file_names == ordered
    assert brightness(list(source)) == [20, 24, 32, 28, 36]


def test_pictures(tmp_path: Path) -> None:
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[:, :3] = (200, 100, 50)
    grey16 = np.full((4, 6), 0x8040, np.uint16)
    alpha = np.dstack([colours, np.full((4, 6), 7, np.uint8)])
    pictures = {
        "colour.png": (Image.fromarray(colours), colours),
        "grey.png": (Image.fromarray(colours[:, :, 0]), np.repeat(colours[:, :, :1], 3, 2)),
        "grey16.png": (Image.fromarray(grey16), np.full((4, 6, 3), 0x80, np.uint8)),
        "alpha.png": (Image.fromarray(alpha), colours),
        "palette.png": (Image.fromarray(colours).quantize(4), colours),
        "one.bmp": (Image.fromarray(colours[:1, :1]), colours[:1, :1]),
    }
    for name, (image, expected) in pictures.items():
        image.save(tmp_path / name)
        np.testing.assert_array_equal(read_untrusted_image(tmp_path / name), expected, err_msg=name)
        np.testing.assert_array_equal(to_rgb(image), expected, err_msg=name)
        assert VideoSource(tmp_path / name).is_still
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(colours).save(tmp_path / "turned.png", exif=exif)
    assert read_untrusted_image(tmp_path / "turned.png").shape == (6, 4, 3)


def test_arrays_and_iterators() -> None:
    grey = np.full((3, 4), 9, np.uint8)
    for video in ([grey, grey], iter([grey, grey]), np.stack([grey] * 2)[..., None]):
        frames = list(iterate_frames(video))
        assert [frame.number for frame in frames] == [0, 1]
        assert frames[0].image.shape == (3, 4, 3)
    assert len(list(iterate_frames(np.zeros((5, 6, 3), np.uint8)))) == 1
    assert len(list(iterate_frames(np.zeros((7, 5, 6, 3), np.uint8)))) == 7
    np.testing.assert_array_equal(to_rgb(grey.astype(np.uint16) * 256), to_rgb(grey))
    for bad in (grey.astype(np.float32), grey[:0], np.zeros((3, 4, 5), np.uint8), grey > 3):
        with pytest.raises(ValueError, match="a frame has to be uint8"):
            to_rgb(bad)
    with pytest.raises(TypeError, match="expected a path, an array, or an iterable"):
        iterate_frames(3)


def test_thinning() -> None:
    frames = [Frame(np.zeros((1, 1, 3), np.uint8), time, n) for n, time in enumerate(range(10))]
    assert [f.number for f in thin_frames(frames, 3)] == [0, 3, 6, 9]
    assert [f.number for f in thin_frames(frames, 1, 2.5)] == [0, 3, 5, 8]
    jump = [frame._replace(time=frame.time + 100 * (frame.number > 4)) for frame in frames]
    assert [f.number for f in thin_frames(jump, 1, 2)] == [0, 2, 4, 5, 7, 9]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 4000), (64, 48)])
def test_output_videos(tmp_path: Path, size: tuple[int, int]) -> None:
    """Odd sides get one more row or column, which H.264 in yuv420p needs."""
    path, times = tmp_path / "output.mp4", [0.0, 0.1, 0.15, 0.9, 2.0]
    with VideoWriter(path, 10) as writer:
        for frame, time in zip(ramp(5, size), times, strict=True):
            writer.write(frame, time)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width) == tuple(side + side % 2 for side in size)
    frames = list(VideoSource(path))
    np.testing.assert_allclose(brightness(frames), [20, 24, 28, 32, 36], atol=3)
    np.testing.assert_allclose([frame.time for frame in frames], times, atol=0.002)


def test_an_output_video_is_complete_after_an_error(tmp_path: Path) -> None:
    def write(path: Path, error: type[BaseException] | None, count: int = 5) -> None:
        with VideoWriter(path, 10) as writer:
            for t, frame in enumerate(ramp(count)):
                writer.write(frame, t / 10)
            if error:
                raise error

    path = tmp_path / "output.mp4"
    with pytest.raises(KeyboardInterrupt):
        write(path, KeyboardInterrupt)
    assert len(list(VideoSource(path))) == 5
    path.unlink()
    write(path, None, count=0)
    temporary_name(path).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        write(path, None)
    assert not list(tmp_path.iterdir())
