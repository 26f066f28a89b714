"""tools/save_clip_features.py, with a tiny CLIP model."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ovformer.d2 import DatasetCatalog
from ovformer.data.files.image_embeddings import ImageEmbeddingStore, crop_for_embedding
from ovformer.data.samples.image_mapper import read_rgb
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from support.mini_lvis import MiniLvis

TOOL = Path(__file__).parents[2] / "tools" / "save_clip_features.py"
MODEL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "width": 32, "heads": 2, "layers": 1},
}

spec = importlib.util.spec_from_file_location("save_clip_features", TOOL)
save_clip_features = importlib.util.module_from_spec(spec)
spec.loader.exec_module(save_clip_features)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a tiny CLIP model on disk."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    save_file(open_clip.CLIP(**MODEL).state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": MODEL, "preprocess_cfg": {"size": 16}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def run(clip: str, output: Path, *arguments: object) -> ImageEmbeddingStore:
    options = ["--output", output, "--clip", clip, "--device", "cpu", "--num-workers", 0]
    save_clip_features.main([str(a) for a in [*options, *arguments]])
    return ImageEmbeddingStore.open(output)


def expected(encoder: CLIPEncoder, file: str) -> torch.Tensor:
    return encoder.encode_image(encoder.preprocess(Image.open(file))[None])[0]


def test_features_of_data_sets(
    mini_lvis: MiniLvis,
    tmp_path: Path,
    clip: str,
) -> None:
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
    mini_lvis: MiniLvis,
    tmp_path: Path,
    clip: str,
) -> None:
    (mini_lvis.root / "coco" / "notes.txt").write_text("no image")
    store = run(clip, tmp_path / "f.safetensors", "--images", mini_lvis.root / "coco", "--half")
    record = DatasetCatalog.get("lvis_v1_train")[2]
    feature = expected(CLIPEncoder.from_pretrained(clip), record["file_name"])
    assert len(store) == 5
    assert torch.equal(store.get(record), feature.half().float())


def test_an_interrupted_run_goes_on(
    mini_lvis: MiniLvis,
    tmp_path: Path,
    clip: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    read = []

    def interrupt(file: str) -> np.ndarray:
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(file)
        return read_rgb(file)

    output = tmp_path / "features.safetensors"
    arguments = [clip, output, "--dataset", "lvis_v1_train", "--batch-size", 1]
    monkeypatch.setattr(save_clip_features, "read_rgb", interrupt)
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 130
    assert not output.exists()
    monkeypatch.setattr(save_clip_features, "read_rgb", read_rgb)
    store = run(*arguments)
    assert "2 of 5 images to encode" in capsys.readouterr().out
    store.require(DatasetCatalog.get("lvis_v1_train"))
    run(*arguments)
    assert "0 of 5 images to encode" in capsys.readouterr().out


def test_bad_arguments_are_named(
    mini_lvis: MiniLvis,
    tmp_path: Path,
    clip: str,
    user_error: Callable[..., str],
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
        message = user_error(save_clip_features.main, *words, "--clip", model, *others)
        assert [key for key in keys if key not in message] == [], message


@pytest.mark.slow
def test_several_processes(
    mini_lvis: MiniLvis,
    tmp_path: Path,
    clip: str,
) -> None:
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
            env={
                **os.environ,
                "DETECTRON2_DATASETS": str(mini_lvis.root),
                "PYTHONPATH": str(TOOL.parents[1]),
            },
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
