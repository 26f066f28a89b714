"""tools/save_clip_features.py, with a tiny CLIP model."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovformer.d2 import DatasetCatalog
from ovformer.data.files.image_embeddings import ImageEmbeddingStore, crop_for_embedding
from ovformer.data.samples.image_mapper import read_rgb
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from support.mini_lvis import MiniLvis
from support.mini_videos import MiniVideos
from support.tiny_clip import make_clip

TOOL = "save_clip_features"
SCRIPT = Path(__file__).parents[2] / "tools" / "save_clip_features.py"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a tiny CLIP model on disk."""
    return make_clip(tmp_path_factory.mktemp("clip") / "model", width=12)


@pytest.fixture
def run(tool, clip: str) -> Callable[..., ImageEmbeddingStore]:
    """A function that runs the tool and returns what it stored."""

    def run(output: Path, *words: object) -> ImageEmbeddingStore:
        options = ["--output", output, "--clip", clip, "--device", "cpu", "--num-workers", 0]
        tool.main([str(word) for word in [*options, *words]])
        return ImageEmbeddingStore.open(output)

    return run


def test_data_sets_and_folders(mini_lvis: MiniLvis, tmp_path: Path, clip: str, run) -> None:
    output, names = tmp_path / "metadata" / "a.safetensors", ["lvis_v1_train", "lvis_v1_val"]
    store = run(output, "--dataset", *names, "--batch-size", 2, "--num-workers", 1)
    assert (len(store), store.dim, store.info["clip"]) == (5, 12, clip)
    (mini_lvis.root / "coco" / "notes.txt").write_text("no image")
    half = run(tmp_path / "b.safetensors", "--images", mini_lvis.root / "coco", "--half")
    assert len(half) == 5
    encoder = CLIPEncoder.from_pretrained(clip)
    for record in DatasetCatalog.get("lvis_v1_train"):
        image = encoder.preprocess(Image.open(record["file_name"]))
        expected = encoder.encode_image(image[None])[0]
        torch.testing.assert_close(store.get(record), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(half.get(record), expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(half.get(record), half.get(record).half().float())


def test_frames_of_videos(mini_videos: MiniVideos, tool) -> None:
    images = tool.find_dataset_images(["ytvis_2019_val", "ytvis_2019_train"])
    frame = mini_videos.frames / "video3" / "00005.png"
    assert len(images) == 20
    assert images["ytvis_2019/valid/JPEGImages/video3/00005.png"] == str(frame)
    frame.unlink()
    with pytest.raises(FileNotFoundError, match=r"00005\.png \(frame 5 of video 3\)"):
        tool.find_dataset_images(["ytvis_2019_val"])


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (9, 33)])
def test_the_tool_sees_images_as_the_model_does(clip: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    encoder = CLIPEncoder.from_pretrained(clip)
    assert torch.equal(crop_for_embedding(image, encoder.image_size), encoder.preprocess(image))


def test_an_interrupted_run_resumes(
    mini_lvis: MiniLvis, tmp_path: Path, tool, run, monkeypatch, capsys
) -> None:
    read = []

    def interrupt(file: str) -> np.ndarray:
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(file)
        return read_rgb(file)

    output = tmp_path / "features.safetensors"
    words = [output, "--dataset", "lvis_v1_train", "--batch-size", 1]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(tool, "read_rgb", interrupt)
        run(*words)
    assert end.value.code == 130 and not output.exists()
    run(*words).require(DatasetCatalog.get("lvis_v1_train"))
    assert "2 of 5 images to encode" in capsys.readouterr().out
    run(*words)
    assert "0 of 5 images to encode" in capsys.readouterr().out


def test_bad_arguments(mini_lvis: MiniLvis, tmp_path: Path, clip: str, tool, user_error) -> None:
    broken = mini_lvis.root / "coco" / "val2017" / "000000000003.png"
    broken.write_bytes(b"no image")
    others = ["--output", tmp_path / "x.safetensors", "--device", "cpu", "--num-workers", 0]
    for model, words, keys in (
        (clip, ["--dataset", "nope"], ["--dataset", "'nope'"]),
        (clip, ["--images", tmp_path / "empty"], ["--images", str(tmp_path / "empty")]),
        ("ViT-C-99", ["--dataset", "lvis_v1_val"], ["'ViT-C-99'"]),
        (clip, [], ["--dataset", "--images"]),
        (clip, ["--dataset", "lvis_v1_val"], [str(broken)]),
    ):
        message = user_error(tool.main, *words, "--clip", model, *others)
        assert [key for key in keys if key not in message] == [], message


@pytest.mark.slow
def test_several_processes(mini_lvis: MiniLvis, tmp_path: Path, clip: str, run) -> None:
    """Five images and one more run with a sixth: three processes then have none."""
    outputs = [tmp_path / "output" / name for name in ("one.safetensors", "four.safetensors")]
    folder = mini_lvis.root / "coco"
    words = ["--images", folder, "--output", outputs[1], "--clip", clip, "--device", "cpu"]
    words += ["--num-workers", 0, "--num-gpus", 4]
    for count, new in ((5, 5), (6, 1)):
        if count == 6:
            Image.new("RGB", (20, 30)).save(folder / "more.png")
        one = run(outputs[0], "--images", folder)
        process = subprocess.run(
            [sys.executable, SCRIPT, *map(str, words)],
            env={**os.environ, "DETECTRON2_DATASETS": str(mini_lvis.root)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert process.returncode == 0, process.stderr
        four = ImageEmbeddingStore.open(outputs[1])
        assert four.keys == one.keys and len(four) == count
        for key in one.keys:
            torch.testing.assert_close(four.get(key), one.get(key), rtol=1e-5, atol=1e-6)
        assert f": {new} of {count} images to encode" in process.stdout
        assert set((tmp_path / "output").iterdir()) == set(outputs)
