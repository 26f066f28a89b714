"""CLIP's view of an image, keys, the feature store and its writer."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from ovformer.d2 import DatasetCatalog
from ovformer.data.files.image_embeddings import (
    ImageEmbeddingStore,
    ImageEmbeddingWriter,
    crop_for_embedding,
    make_image_key,
)
from support.mini_lvis import MiniLvis

INFO = {"clip": "ViT-B-32-quickgelu", "pretrained": "openai"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "store.safetensors"


def write(path: Path, keys: list[str], features: torch.Tensor, **options: object) -> None:
    with ImageEmbeddingWriter(path, INFO, **options) as writer:
        writer.add(keys, features)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([7, 16, 33]))
def test_clip_image_is_clips_own_preprocessing(height: int, width: int, size: int) -> None:
    rng = np.random.default_rng(height * 100 + width)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    resized = F.resize(Image.fromarray(image), size, InterpolationMode.BICUBIC)
    expected = F.pil_to_tensor(F.center_crop(resized, size))
    assert torch.equal(crop_for_embedding(image, size), expected)


def test_keys_are_relative_to_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "a"))
    assert make_image_key(tmp_path / "a" / "coco" / ".." / "x.jpg") == "x.jpg"
    assert make_image_key(tmp_path / "ab" / "x.jpg") == (tmp_path / "ab" / "x.jpg").as_posix()
    monkeypatch.setenv("DETECTRON2_DATASETS", "datasets")
    assert make_image_key("datasets/coco/x.jpg") == "coco/x.jpg"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_written_embeddings_are_read(path: Path, dtype: torch.dtype) -> None:
    features = torch.randn(5, 8)
    write(path, [f"coco/{i} ü\n.jpg" for i in range(5)], features, dtype=dtype)
    store = ImageEmbeddingStore.open(path)
    assert (len(store), store.dim, store.info["clip"]) == (5, 8, INFO["clip"])
    row = store.get("coco/3 ü\n.jpg")
    assert row.dtype == torch.float32
    assert torch.equal(row, features[3].to(dtype).float())
    # Another process opens the file itself, and gets no copy of the features.
    assert len(pickle.dumps(store)) < 300
    assert torch.equal(pickle.loads(pickle.dumps(store)).get("coco/3 ü\n.jpg"), row)


def test_another_root_works(path: Path, mini_lvis: MiniLvis, monkeypatch) -> None:
    keys = [record["clip_key"] for record in DatasetCatalog.get("lvis_v1_train")]
    write(path, keys, torch.randn(5, 4))
    moved = mini_lvis.root.rename(mini_lvis.root.parent / "moved")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(moved))
    store = ImageEmbeddingStore.open(path)
    records = DatasetCatalog.get("lvis_v1_train")
    store.require(records)
    # A data set of somebody else's has no clip_key; the file name says it.
    anonymous = {"file_name": records[2]["file_name"], "image_id": 3}
    assert torch.equal(store.get(anonymous), store.get(records[2]))


def test_published_files_are_read(tmp_path: Path) -> None:
    path, row = tmp_path / "features.pkl", torch.randn(1, 6).half()
    torch.save({1: torch.zeros(1, 6).half(), 7: row}, path)
    store = ImageEmbeddingStore.open(path)
    record = {"clip_key": "coco/train2017/7.jpg", "file_name": "7.jpg", "image_id": 7}
    assert torch.equal(store.get(record), row[0].float()) and store.dim == 6

    frame = "LVVIS/val/JPEGImages/0/1.jpg"
    for zipped in (False, True):
        content = {f"datasets/{frame}": row}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        store = ImageEmbeddingStore.open(path)
        for key in (frame, f"datasets/{frame}", {"clip_key": frame}):
            assert torch.equal(store.get(key), row[0].float())


class Dangerous:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("dangerous"),)


def test_files_that_are_not_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no.safetensors not found.*save_clip_features.py"):
        ImageEmbeddingStore.open("no.safetensors")
    torch.save({1: Dangerous()}, "bad.pkl")
    with pytest.raises(ValueError, match="bad.pkl: not a dict of tensors.*could run code"):
        ImageEmbeddingStore.open("bad.pkl")
    assert not Path("dangerous").exists()
    Path("text.pkl").write_text("no pickle")
    Path("text.safetensors").write_text("no tensors")
    torch.save([1, 2], "list.pkl")
    for name in ("text.pkl", "text.safetensors", "list.pkl"):
        with pytest.raises(ValueError, match=f"{name}: .*save_clip_features.py"):
            ImageEmbeddingStore.open(name)


def test_a_missing_key_names_the_nearest_and_the_tool(path: Path) -> None:
    write(path, ["coco/train2017/000000000009.jpg", "zzz"], torch.zeros(2, 4))
    store = ImageEmbeddingStore.open(path)
    record = {"clip_key": "coco/val2017/000000000009.jpg", "file_name": "f", "image_id": 9}
    expected = (
        rf"{path} has no CLIP features for 'coco/val2017/000000000009.jpg' \(image id 9\); "
        r".*'coco/train2017/000000000009.jpg'.*save_clip_features.py"
    )
    with pytest.raises(KeyError, match=expected):
        store.get(record)
    with pytest.raises(KeyError, match=f"2 images have no CLIP features.*{path}"):
        store.require([record, {"file_name": "/x.jpg"}, {"clip_key": "zzz"}])


def test_interrupted_writing_resumes(path: Path) -> None:
    with pytest.raises(OSError), ImageEmbeddingWriter(path, INFO):
        raise OSError  # before the first image: nothing is left
    assert not list(path.parent.iterdir())
    features = torch.randn(7, 4)
    with (
        pytest.raises(KeyboardInterrupt),
        ImageEmbeddingWriter(path, INFO, rows_per_part=2) as writer,
    ):
        writer.add(["0", "1", "2"], features[:3])
        writer.add(["3"], features[3:4])
        raise KeyboardInterrupt
    assert not path.exists()
    killed = ImageEmbeddingWriter(path, INFO, rows_per_part=2)
    killed.add(["4"], features[4:5])  # killed before the next part: this row is lost
    with ImageEmbeddingWriter(path, INFO, rows_per_part=2) as writer:
        assert writer.done == {"0", "1", "2", "3"}
        writer.add(["4", "5"], features[4:6])
    assert [p.name for p in path.parent.iterdir()] == ["store.safetensors"]
    # A complete store can be added to.
    with ImageEmbeddingWriter(path, INFO) as writer:
        assert len(writer.done) == 6
        writer.add(["6"], features[6:])
    store = ImageEmbeddingStore.open(path)
    assert torch.equal(torch.stack([store.get(str(i)) for i in range(7)]), features)


def test_a_store_is_not_mixed(path: Path) -> None:
    write(path, ["a"], torch.zeros(1, 4))
    with pytest.raises(ValueError, match="was made with .*openai.* not with .*laion"):
        ImageEmbeddingWriter(path, {**INFO, "pretrained": "laion2b"})
    with pytest.raises(ValueError, match="not with .*float16"):
        ImageEmbeddingWriter(path, INFO, torch.float16)
    with pytest.raises(ValueError, match="has to end with .safetensors"):
        ImageEmbeddingWriter(path.with_suffix(".pkl"), INFO)
