"""Files from elsewhere: no code of theirs runs, nothing is written beside the output folder."""

import json
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import DetectionCheckpointer
from ovformer.data.catalog.custom import register_custom
from ovformer.data.files import video_files
from ovformer.data.files.image_embeddings import ImageEmbeddingStore
from ovformer.data.files.json_file import read_json
from ovformer.data.files.video_files import read_untrusted_image
from ovformer.data.files.video_writer import VideoWriter
from ovformer.data.files.vis_json import read_vis_json
from ovformer.data.samples.image_mapper import read_rgb
from ovformer.engine.checkpoint import Checkpointer, read_weights
from ovformer.evaluation import results_reader, results_writer
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from ovformer.modeling.language.text_classifier import load_text_classifier
from ovformer.predictor.pretrained import load_pretrained
from ovformer.preflight import setup_model
from support.mini_videos import MiniVideos
from support.tiny_clip import make_clip


class Attack:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch attacked",)


class Forged:
    """Bytes that pass for a reference to a Python object: reading it would end the process."""

    def __reduce__(self) -> tuple:
        return np.ndarray, ((1,), "O", b"12345678")


class ForgedType:
    """The type of a number, of which a file says that it holds references to Python objects."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple:
        state = (3, "|", None, ("a",), {"a": (np.dtype(self.kind), 0)}, 8, 1, 0)
        return np.dtype, ("f8", False, True), state


def save_pickle(content: object, path: Path, protocol: int | None = None) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


def clip_folder(path: Path) -> CLIPEncoder:
    """Load a CLIP model whose weights are a file."""
    name = make_clip(path.parent / "clip")
    (path.parent / "clip" / "open_clip_model.safetensors").unlink()
    path.rename(path.parent / "clip" / "open_clip_pytorch_model.bin")
    return CLIPEncoder.from_pretrained(name)


BILLION_LISTS = "a0: &a0 [1]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 31)
)


def load(checkpointer: type[DetectionCheckpointer]) -> Callable[[Path], object]:
    return lambda path: checkpointer(nn.Linear(1, 1)).load(str(path))


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights": ("x.pth", read_weights),
    "pickled weights": ("x.pkl", read_weights),
    "a training's checkpointer": ("x.pth", load(Checkpointer)),
    "the same, .pkl": ("x.pkl", load(Checkpointer)),
    "detectron2's checkpointer": ("x.pth", load(DetectionCheckpointer)),
    "detectron2's, .pkl": ("x.pkl", load(DetectionCheckpointer)),
    "the predictor": ("x.pth", lambda path: load_pretrained(None, path)),
    "features": ("x.pkl", ImageEmbeddingStore.open),
    "text classifier": ("x.npy", load_text_classifier),
    "CLIP's folder": ("x.bin", clip_folder),
    "CLIP's weights": ("x.pt", lambda path: CLIPEncoder.from_pretrained("RN50", str(path))),
}


@pytest.mark.parametrize("saved", ["torch", "pickle"])
@pytest.mark.parametrize("reader", READERS)
def test_no_code_runs(reader: str, saved: str, tmp_path: Path, monkeypatch) -> None:
    if "detectron2's" in reader and "builtin" not in DetectionCheckpointer.__module__:
        pytest.skip("with an installed detectron2 it is detectron2's own; ours reads by itself")
    monkeypatch.chdir(tmp_path)
    name, read = READERS[reader]
    path = tmp_path / name
    content = {"model": {"weight": Attack()}, "__author__": "x"}
    save = torch.save if saved == "torch" else save_pickle
    save(content, path)
    with pytest.raises(ValueError, match="x.|clip") as refusal:
        read(path)
    assert not (tmp_path / "attacked").exists()
    expected = {".pkl": "pickle", ".npy": None}.get(path.suffix, "torch")
    if saved == ("torch" if reader == "features" else expected):  # the format that it reads
        assert "system" in str(refusal.value)


def test_no_code_runs_in_the_converter(load_tool, user_error, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"weight": Attack()}}, "x.pth")
    tool = load_tool("convert-thirdparty-pretrained-model-to-d2")
    message = user_error(tool.main, "--path", "x.pth")
    assert "x.pth" in message and "system" in message
    assert not Path("attacked").exists() and not Path("x.pkl").exists()


@pytest.mark.parametrize(
    "content", [Forged(), ForgedType("O"), ForgedType("f8"), np.array(["a"]), np.array([{}])]
)
def test_bytes_never_become_python_objects(content: object, tmp_path: Path) -> None:
    """numpy believes what a file says of its types."""
    save_pickle({"model": {"weight": content}}, tmp_path / "x.pkl")
    torch.save({"model": {"weight": torch.ones(1)}, "trainer": [content]}, tmp_path / "x.pth")
    for name in ("x.pkl", "x.pth"):
        with pytest.raises(ValueError, match=f"{name} can't be read"):
            read_weights(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a place in the memo: the C code makes room for all before
        b"\x80\x04\x8c\x05torch\x8c\x04Size\x93}b.",  # changes a class
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # 8 exabytes follow
        b"(" * 1000,
    ],
)
def test_pickles_made_by_hand(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="x.pkl (can't be read|holds no weights)"):
        read_weights(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_numbers_are_read(protocol: int, tmp_path: Path) -> None:
    arrays = [np.float32([[1, 2]]), np.asfortranarray(np.ones((2, 3), ">i2")), np.float64(0.5)]
    arrays += [np.array(True), np.ones(3, np.float16)[::2]]
    save_pickle({"model": dict(enumerate(arrays))}, tmp_path / "x.pkl", protocol)
    for number, found in read_weights(tmp_path / "x.pkl")["model"].items():
        # numpy turns foreign byte orders into its own, in most protocols.
        assert found.dtype.newbyteorder("=") == arrays[int(number)].dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, arrays[int(number)])


WRONG = [{key: value} for key in ("config", "templates", "clip") for value in (5, [5], {"name": 5})]


@pytest.mark.parametrize("metadata", [5, {"config": "_BASE_: /etc/passwd"}, *WRONG])
def test_hostile_metadata_of_weights(metadata: object, tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "metadata": metadata}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="x.pth: .*(metadata|_BASE_)"):
        load_pretrained(None, tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("names", "metadata", "iteration"), [(5, None, "x"), ([5, None], "config", None)]
)
def test_hostile_entries_beside_weights(
    names: object, metadata: object, iteration: object, tmp_path: Path
) -> None:
    """Weights are loaded, and described by check_setup.py, whatever else their file holds."""
    others = {"class_names": names, "metadata": metadata, "iteration": iteration}
    model = nn.Linear(1, 1)
    model.VOCABULARY_KEYS = ["zs_weight"]
    weights = {**model.state_dict(), "zs_weight": torch.tensor(1.0)}
    torch.save({"model": weights, **others}, tmp_path / "x.pth")
    checkpointer = Checkpointer(model, class_names=["cat"])
    checkpointer.load(str(tmp_path / "x.pth"), checkpointables=[])
    assert checkpointer.has_loaded_all
    described = setup_model.describe_checkpoint(read_weights(tmp_path / "x.pth"))
    assert described.startswith("3 arrays of") and "iterations" not in described


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'"categories"', "no 'categories'; the file holds str"),
        (b"null", "no 'categories'; the file holds NoneType"),
    ],
)
def test_json_of_any_shape(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"x.json: .*{reason}"):
        read_json(path, ("categories",))
    path.write_text('{"categories": []}', encoding="utf-8-sig")
    assert read_json(path, ("categories",)) == {"categories": []}


@pytest.fixture
def custom(tmp_path: Path) -> dict:
    """The entry of a data set without images in ``DATASETS.CUSTOM``."""
    annotations = tmp_path / "x.json"
    annotations.write_text(json.dumps({"images": [], "categories": [{"id": 1, "name": "a"}]}))
    return {"name": "mine", "annotations": str(annotations), "images": str(tmp_path)}


@pytest.mark.parametrize("name", ["../up", "/root", "..", "a/b", "", 5])
def test_names_of_data_sets_are_names_of_folders(name: object, custom: dict) -> None:
    with pytest.raises(ValueError, match=r"DATASETS.CUSTOM\[0\].*name"):
        register_custom([{**custom, "name": name}])


@pytest.mark.parametrize("path", ["x" * 9999 + ".json", "/y" * 9999 + "/x.json", "a\0.json"])
def test_paths_that_no_file_can_have(path: str, custom: dict) -> None:
    """Not an error of the system's, which does not say where the path stands."""
    for key in ("annotations", "images"):
        with pytest.raises(FileNotFoundError, match="no such f"):
            register_custom([{**custom, key: path}])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("MODEL: [", "no YAML file"),
        ("- a", "expected 'KEY: value' lines"),
        ("", "no YAML file"),
        ("a: !!python/object/apply:os.system [touch attacked]", "could not determine a constr"),
        ("_BASE_: x.yaml", "recursion"),
        ("_BASE_: .", "no YAML file"),
        ("MODEL: {DEVICE: " + "[" * 5000, "no YAML file"),
        ("MODEL: {DEVICE: [1, 2]}", "MODEL.DEVICE: expected a text"),
        ("DATASETS: {CUSTOM: &a [*a]}", "recursion"),
        (BILLION_LISTS, "at most 100000 values"),
        ("MODEL: \xe9".encode("latin1"), "no YAML file"),
        ("_BASE_: none.yaml", r"none\.yaml"),
        ("VERSION: 1", "VERSION: 1 can't be read, only 2"),
        ("SOLVER:", "'SOLVER' is a section"),
        ("SOLVER: {BASE_LR: {X: 1}}", "BASE_LR: expected a number"),
    ],
)
def test_config_files_that_are_none(text: str | bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"--config-file:? {path}:? .*{reason}"):
        get_ovformer_cfg(str(path))


@pytest.mark.parametrize("value", ["(" * 9999, "[1]", "\0"])
def test_values_of_the_command_line_that_cannot_be_used(value: str) -> None:
    with pytest.raises(ValueError, match="SOLVER.BASE_LR: expected a number"):
        get_ovformer_cfg(None, ["SOLVER.BASE_LR", value])


def test_pictures_that_are_bombs(tmp_path: Path, load_tool, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    folder = tmp_path / "videos" / "one"
    folder.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(folder / "0.png")
    for read in (read_rgb, read_untrusted_image):
        with pytest.raises(ValueError, match="0.png: the (image|picture) can't be decoded .*bomb"):
            read(str(folder / "0.png"))
    with pytest.raises(ValueError, match="0.png: no image that can be read"):
        load_tool("lvvis_test_instances_json").list_videos(tmp_path / "videos")


def test_drawn_videos_stay_in_their_folder(mini_videos: MiniVideos, load_tool) -> None:
    """Whatever the names of their frames are."""
    tool, categories = load_tool("vis_results"), [{"id": 1, "name": "a"}]
    for name, expected in {
        **dict.fromkeys(("../../up.png", "a/..//../up.png", "..\\..\\0.png"), "video7"),
        **dict.fromkeys(("/up.png", "up.png"), "set"),
        "a/../b/0.png": "b",
    }.items():
        video = {"id": 7, "height": 4, "width": 6, "file_names": [name]}
        path = mini_videos.root / "x.json"
        path.write_text(json.dumps({"videos": [video], "categories": categories}))
        (record,) = read_vis_json(path, Path("/set"), categories)
        assert tool.choose_folder_names([record]) == {7: expected}, name


def test_a_file_of_results_is_not_read_on_behind_a_fault(tmp_path: Path, monkeypatch) -> None:
    """A file of any length would be read into memory, in vain."""
    monkeypatch.setattr(results_reader, "_CHUNK", 1000)
    path = tmp_path / "results.json"
    path.write_text('[{"video_id": oops' + " " * 10**6)
    reads = []
    plain = results_reader._decode
    monkeypatch.setattr(results_reader, "_decode", lambda *a: reads.append(len(a[0])) or plain(*a))
    with pytest.raises(ValueError, match="results.json: prediction 0 is not valid JSON"):
        list(results_reader.read_results(path))
    assert reads == [1000]
    path.write_text('[{"video_id": "' + " " * 10**6)
    with pytest.raises(ValueError, match="results.json: prediction 0 is cut off"):
        list(results_reader.read_results(path))
    assert len(reads) < 15  # twice as much each time


def predict(**wrong: object) -> str:
    right = {"video_id": 1, "score": 1, "category_id": 1, "segmentations": []}
    return json.dumps([{**right, **wrong}])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "recursion"),
        ('[{"a": ' + "9" * 5000 + "}]", "digits"),
        ("[5]", "has to be an object with video_id, score, category_id, segmentations; found 5"),
        (predict(video_id=[1]), "video_id .1.;"),
        (predict(score=float("nan")), "score nan; ex"),
        (predict(category_id="1"), "category_id '1"),
        (predict(segmentations={}), "expected a list"),
    ],
)
def test_results_of_any_shape(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"results.json: prediction 0 .*{reason}"):
        list(results_reader.read_results(path))
    path.write_text("[]", encoding="utf-8-sig")
    assert list(results_reader.read_results(path)) == []


def test_a_foreign_part_of_results(tmp_path: Path) -> None:
    line = b'{"a"'
    (tmp_path / "results.json.part0").write_bytes(b"%08x %b\n" % (zlib.crc32(line), line))
    with pytest.raises(ValueError, match="part0, line 1: .*evaluate without --resume"):
        results_writer.ResultsWriter(tmp_path / "results.json", resume=True)


def test_videos(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs the extra [demo]")
    path = tmp_path / "a:b.mp4"
    with VideoWriter(path, 10) as video:
        video.write(np.zeros((32, 32, 3), np.uint8), 0)
    assert len(list(video_files.VideoSource(path))) == 1
    with pytest.raises(ValueError, match="a:b.mp4: a frame of 32 x 32 pixels .* at most 1000"):
        video_files.VideoSource(path, max_pixels=1000)
    listed = tmp_path / "list.mp4"
    listed.write_text(f"ffconcat version 1.0\nfile '{path}'\n")
    with pytest.raises((ValueError, av.error.FFmpegError)):
        list(video_files.VideoSource(listed))
