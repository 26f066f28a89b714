"""tools/save_clip_features.py, with a tiny CLIP model."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from ovformer.d2 import DatasetCatalog
from ovformer.data.files.image_embeddings import ImageEmbeddingStore, crop_for_embedding
from ovformer.data.samples.image_mapper import read_rgb
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from support.mini_lvis import MiniLvis
from support.tiny_clip import make_clip

TOOL = Path(__file__).parents[2] / "tools" / "save_clip_features.py"


@pytest.fixture(scope="module")
def tool(load_tool) -> ModuleType:
    return load_tool("save_clip_features")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a tiny CLIP model on disk."""
    return make_clip(tmp_path_factory.mktemp("clip") / "model", width=12)


@pytest.fixture
def run(tool) -> Callable[..., ImageEmbeddingStore]:
    """A function that runs the tool and returns what it stored."""

    def run(clip: str, output: Path, *arguments: object) -> ImageEmbeddingStore:
        options = ["--output", output, "--clip", clip, "--device", "cpu", "--num-workers", 0]
        tool.main([str(a) for a in [*options, *arguments]])
        return ImageEmbeddingStore.open(output)

    return run


def expected(encoder: CLIPEncoder, file: str) -> torch.Tensor:
    return encoder.encode_image(encoder.preprocess(Image.open(file))[None])[0]


def test_features_of_data_sets(mini_lvis: MiniLvis, tmp_path: Path, clip: str, run) -> None:
    output = tmp_path / "metadata" / "features.safetensors"
    arguments = ["--dataset", "lvis_v1_train", "lvis_v1_val", "--batch-size", 2]
    store = run(clip, output, *arguments, "--num-workers", 1)
    records = DatasetCatalog.get("lvis_v1_train")
    assert (len(store), store.dim, store.info["clip"]) == (5, 12, clip)
    encoder = CLIPEncoder.from_pretrained(clip)
    for record in records:
        torch.testing.assert_close(
            store.get(record), expected(encoder, record["file_name"]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (9, 33)])
def test_the_tool_sees_images_as_the_model_does(clip: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    encoder = CLIPEncoder.from_pretrained(clip)
    assert torch.equal(crop_for_embedding(image, encoder.image_size), encoder.preprocess(image))


def test_features_of_a_folder_in_half_precision(
    mini_lvis: MiniLvis, tmp_path: Path, clip: str, run
) -> None:
    (mini_lvis.root / "coco" / "notes.txt").write_text("no image")
    store = run(clip, tmp_path / "f.safetensors", "--images", mini_lvis.root / "coco", "--half")
    record = DatasetCatalog.get("lvis_v1_train")[2]
    feature = expected(CLIPEncoder.from_pretrained(clip), record["file_name"])
    assert len(store) == 5
    assert torch.equal(store.get(record), feature.half().float())


def test_an_interrupted_run_resumes(
    mini_lvis: MiniLvis, tmp_path: Path, clip: str, tool, run, monkeypatch, capsys
) -> None:
    read = []

    def interrupt(file: str) -> np.ndarray:
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(file)
        return read_rgb(file)

    output = tmp_path / "features.safetensors"
    arguments = [clip, output, "--dataset", "lvis_v1_train", "--batch-size", 1]
    monkeypatch.setattr(tool, "read_rgb", interrupt)
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 130
    assert not output.exists()
    monkeypatch.setattr(tool, "read_rgb", read_rgb)
    store = run(*arguments)
    assert "2 of 5 images to encode" in capsys.readouterr().out
    store.require(DatasetCatalog.get("lvis_v1_train"))
    run(*arguments)
    assert "0 of 5 images to encode" in capsys.readouterr().out


def test_bad_arguments_are_named(
    mini_lvis: MiniLvis, tmp_path: Path, clip: str, tool, user_error
) -> None:
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
    for extra in (None, "more.png"):
        if extra:
            Image.new("RGB", (20, 30)).save(folder / extra)
        one = run(clip, outputs[0], "--images", folder)
        words = ["--images", folder, "--output", outputs[1], "--clip", clip, "--device", "cpu"]
        words += ["--num-workers", 0, "--num-gpus", 4]
        process = subprocess.run(
            [sys.executable, TOOL, *map(str, words)],
            env={**os.environ, "DETECTRON2_DATASETS": str(mini_lvis.root)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert process.returncode == 0, process.stderr
        four = ImageEmbeddingStore.open(outputs[1])
        assert four.keys == one.keys and len(four) == (6 if extra else 5)
        for key in one.keys:
            torch.testing.assert_close(four.get(key), one.get(key), rtol=1e-5, atol=1e-6)
        assert f": {1 if extra else 5} of {len(four)} images to encode" in process.stdout
        assert set((tmp_path / "output").iterdir()) == set(outputs)
