"""Media: hostile zip files, finding files by what a tool calls them, frames of several sizes."""

import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ovformer.data.exports import media
from ovformer.data.exports.media import (
    VIDEO_SUFFIXES,
    Folder,
    FrameFiles,
    MediaFile,
    MediaLibrary,
    VideoFrames,
    Zip,
    open_export,
)
from ovformer.data.files.image_files import IMAGE_SUFFIXES
from ovformer.data.files.video_files import iterate_frames
from support.annotation_exports import draw, png, write_frames, write_video, zip_of

PICTURE = png(np.zeros((4, 6, 3), np.uint8))


def write_zip(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "a.zip"
    path.write_bytes(zip_of(members))
    return path


def test_hostile_zips_are_refused(tmp_path: Path) -> None:
    for name in ("../up.png", "images/../../up.png", "/root.png", "..\\up.png"):
        with pytest.raises(ValueError, match="a.zip: member .* lies outside"):
            Zip(write_zip(tmp_path, {"ok.png": PICTURE, name: PICTURE}))
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as target:
        target.writestr(link, "/etc/hostname")
    with pytest.raises(ValueError, match="'link.png' is a link"):
        Zip(tmp_path / "link.zip")
    bomb = write_zip(tmp_path, {"bomb.png": bytes(2**25)})
    with pytest.raises(ValueError, match="unpacks from .* to 33,554,432 bytes"):
        Zip(bomb)
    bomb.write_bytes(bomb.read_bytes()[:-30])
    with pytest.raises(ValueError, match="not a zip file, or cut off"):
        Zip(bomb)


@pytest.mark.parametrize("name", ["a.xml", "a.png"])
def test_members_that_can_not_be_unpacked_are_named(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path, {name: PICTURE * 20})
    content = bytearray(path.read_bytes())
    content[60:70] = bytes(10)  # inside the compressed bytes
    path.write_bytes(content)
    source = Zip(path)
    with pytest.raises(ValueError, match=f"a.zip: member '{name}' can't be unpacked"):
        if name == "a.xml":
            with open_export(path) as (file, _):
                file.read()
        else:
            FrameFiles([MediaFile(source, name)]).write(tmp_path, [0])
    with pytest.raises(ValueError, match=f"a.zip/{name}: not an image .*can't be unpacked"):
        FrameFiles([MediaFile(source, name)]).probe()


def test_frames_of_a_zip_get_names_of_our_own(tmp_path: Path) -> None:
    source = Zip(write_zip(tmp_path, {"images/$(x) y.PNG": PICTURE, "images/z.png": PICTURE}))
    frames = FrameFiles([MediaFile(source, name) for name in source.names])
    assert frames.probe() == (2, (4, 6))
    assert frames.write(tmp_path, range(2)) == ["00000.png", "00001.png"]
    assert (tmp_path / "00000.png").read_bytes() == PICTURE


def test_an_export_is_one_file_in_a_zip(tmp_path: Path) -> None:
    members = {"a/annotations.xml": b"<a/>", "__MACOSX/a/._annotations.xml": b"of macOS"}
    with open_export(write_zip(tmp_path, members)) as (file, source):
        assert file.read() == b"<a/>" and isinstance(source, Zip)
    (tmp_path / "a.txt").write_text("no")
    for path, message in [
        (write_zip(tmp_path, {"a.txt": b""}), "expected one .xml or .json inside, found none"),
        (tmp_path / "a.txt", "expected an export of annotations"),
        (tmp_path / "none.xml", "none.xml"),
    ]:
        with pytest.raises((FileNotFoundError, ValueError), match=message), open_export(path):
            pass


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("one/00000.png", "one/00000.png"),
        ("/home/me/set/two/00000.png", "two/00000.png"),
        ("C:\\set\\two\\00000.png", "two/00000.png"),
        ("https://host.example/two/00000.png?token=1", "two/00000.png"),
        ("/data/local-files/?d=set%2Fone%2F00000.png", "one/00000.png"),
        ("/data/upload/5/0123abcd-only.png", "two/only.png"),
        ("only", "two/only.png"),
        ("take #1/50%25?.png", "take #1/50%25?.png"),
        ("//[two/only.png", "two/only.png"),
    ],
)
def test_files_are_found_by_what_a_tool_calls_them(
    tmp_path: Path, reference: str, expected: str
) -> None:
    for name in ("one/00000.png", "two/00000.png", "two/only.png", "take #1/50%25?.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PICTURE)
    library = MediaLibrary([Folder(tmp_path)])
    assert library.find(reference, IMAGE_SUFFIXES, "here").name == expected
    with pytest.raises(ValueError, match="here: 00000.png may be .*one.* or .*two"):
        library.find("00000.png", IMAGE_SUFFIXES, "here")
    with pytest.raises(FileNotFoundError, match="here: 'x.mp4' is not among.*--media"):
        library.find("x.mp4", VIDEO_SUFFIXES, "here")


def test_frames_of_a_video_have_one_size(tmp_path: Path) -> None:
    write_frames(tmp_path, draw("clip", 2))
    (tmp_path / "clip" / "00001.png").write_bytes(PICTURE)
    source = Folder(tmp_path)
    frames = FrameFiles([MediaFile(source, name) for name in source.names])
    with pytest.raises(ValueError, match="00000.png has 48 x 64 .*00001.png has 4 x 6"):
        frames.probe()
    for content in (b"nothing", b"P6 20000 20000 255\n"):  # no image; one that is far too large
        (tmp_path / "clip" / "00001.png").write_bytes(content)
        with pytest.raises(ValueError, match="00001.png: not an image"):
            frames.probe()


def test_frames_of_a_video_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path, draw("film", 3))
    found = MediaFile(Folder(path), path.name)
    assert VideoFrames(found).probe() == (3, (48, 64))
    assert VideoFrames(found, [0, 2]).write(tmp_path, [1]) == ["00001.jpg"]
    with pytest.raises(ValueError, match=r"film.mp4: .* up to 3, .* 3 \(0 to 2\)"):
        VideoFrames(found, [0, 3]).probe()
    images = [np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4, 3), np.uint8)]
    monkeypatch.setattr(media, "VideoSource", lambda _: iterate_frames(images))
    with pytest.raises(ValueError, match="film.mp4: frame 1 has 6 x 4 .* 4 x 6"):
        VideoFrames(found).probe()
