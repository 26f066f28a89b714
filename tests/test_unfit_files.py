"""Files that are missing, damaged or do not fit a config: a message says it before long work."""

import json
from pathlib import Path

import pytest
import torch

from ovformer import run as training_script
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import DatasetCatalog, MetadataCatalog, build_model
from ovformer.data.catalog.dataset_spec import load_categories
from ovformer.modeling.language.text_classifier import load_text_classifier, save_text_classifier
from support.tiny_clip import make_clip
from support.tiny_shapes import CLIP_DIM, TinyRun, run_here


def test_clip_model_of_other_sizes(refused, tmp_path: Path) -> None:
    """Which would compute the features of the test images."""
    name = make_clip(tmp_path / "clip", width=8)
    message = refused("MODEL.MASK_FORMER.CLIP_IMAGE_PATH", "", "MODEL.CLIP.NAME", name)
    assert f"MODEL.CLIP.EMBED_DIM is 16, but {name} (MODEL.CLIP.NAME) has width 8" in message
    assert f"MODEL.CLIP.IMAGE_SIZE is 224, but {name} takes images of 32 pixels" in message


@pytest.mark.parametrize("split", ["train_norare", "val"])
def test_missing_annotations(refused, tiny_run: TinyRun, split: str) -> None:
    path = tiny_run.root / "shapes" / f"shapes_{split}.json"
    path.unlink()
    assert f"annotations {path}" in refused()


@pytest.mark.parametrize(
    ("split", "words"), [("val", ""), ("train_norare", "DATASETS.TRAIN: 'shapes_train': ")]
)
def test_truncated_annotations(refused, tiny_run: TinyRun, split: str, words: str) -> None:
    path = tiny_run.root / "shapes" / f"shapes_{split}.json"
    path.write_text(path.read_text()[:-100])
    message = refused()
    assert f"{words}{path}: not valid JSON" in message
    assert "truncated" in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_elsewhere(refused, tiny_run: TinyRun, split: str) -> None:
    """Seen by the first image that the annotations name."""
    folder = tiny_run.root / "shapes" / split
    folder.rename(folder.with_name("other"))
    message = refused()
    assert f"an image of 'shapes_{split}' is not there: {folder / '001.png'}" in message
    assert "1 thing(s)" in message


def test_missing_test_image(refused, tiny_run: TinyRun) -> None:
    path = tiny_run.root / "shapes" / "val" / "002.png"
    path.unlink()
    assert f"shapes_val: 1 of 4 images not found, the first is {path}" in refused()


def test_missing_training_image(tiny_run: TinyRun) -> None:
    path = tiny_run.root / "shapes" / "train" / "002.png"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"shapes_train: 1 of 8 images not found.*002\.png"):
        run_here(tiny_run)


@pytest.mark.parametrize(("split", "option"), [("train", []), ("val", ["--eval-only"])])
def test_an_image_that_cannot_be_decoded(
    tiny_run: TinyRun,
    split: str,
    option: list[str],
) -> None:
    for path in (tiny_run.root / "shapes" / split).glob("*.png"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(Exception, match=rf"{split}.00\d\.png"):
        run_here(tiny_run, *option)


def test_class_count_of_the_config(refused) -> None:
    message = refused("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "35")
    assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 35, but 'shapes_train' (DATASETS.TRAIN) has 36" in (
        message
    )
    assert "classifier.safetensors has 36 classes, but" in message


def test_class_count_of_the_data(refused) -> None:
    assert "'lvis_v1_val' (DATASETS.TEST) has 1203" in refused("DATASETS.TEST", "('lvis_v1_val',)")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((35, CLIP_DIM), "has 35 classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 36"),
        ((36, 7), "has 7 numbers per class, but MODEL.CLIP.EMBED_DIM is 16"),
    ],
)
def test_another_classifier(refused, tiny_run: TinyRun, shape, words: str) -> None:
    path = tiny_run.root / "shapes" / "classifier.safetensors"
    save_text_classifier(path, torch.ones(shape), None, {})
    message = refused()
    assert words in message
    assert "1 thing(s)" in message


def test_features_of_another_clip_model(refused) -> None:
    message = refused("MODEL.CLIP.EMBED_DIM", "8")
    assert "EMBED_DIM is 8, but datasets/shapes/clip_train.safetensors" in message
    assert "has width 16" in message


def test_features_of_other_images(refused, tiny_run: TinyRun) -> None:
    opts = ["MODEL.MASK_FORMER.CLIP_IMAGE_PATH", "datasets/shapes/clip_train.safetensors"]
    assert "4 images have no CLIP features" in refused(*opts)


def test_a_checkpoint_of_another_model(refused, tiny_run: TinyRun) -> None:
    """Of the same kind, but with other sizes; of something else altogether; and no checkpoint."""
    cfg = get_ovformer_cfg(str(tiny_run.config))
    path = tiny_run.root / "other.pth"
    weights = ["MODEL.WEIGHTS", str(path)]
    torch.save({"model": build_model(cfg).state_dict()}, path)
    message = refused("--eval-only", *weights, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "7")
    assert f"MODEL.WEIGHTS: {path} does not fit the model" in message
    assert "query_feat.weight (6, 32), in the model (7, 32)" in message
    torch.save({"model": {"roi_heads.weight": torch.ones(1)}}, path)
    assert "other.pth does not fit the model" in refused("--eval-only", *weights)
    path.write_text("<html>Not found</html>")
    assert f"MODEL.WEIGHTS: {path} can't be read: it is damaged" in refused(*weights)


def test_resuming_from_a_checkpoint_that_is_gone(refused, tiny_run: TinyRun) -> None:
    tiny_run.output.mkdir()
    (tiny_run.output / "last_checkpoint").write_text("model_0000001.pth")
    (tiny_run.output / "model_0000000.pth").touch()
    message = refused("--resume")
    assert "model_0000001.pth is missing" in message
    assert "No checkpoint before it is whole" in message


def test_names_in_another_order(refused, tiny_run: TinyRun) -> None:
    path = tiny_run.root / "shapes" / "classifier.safetensors"
    classifier = load_text_classifier(path)
    names = [name.replace(" ", "_").title() for name in classifier.names]
    names[4], names[7] = names[7], names[4]
    save_text_classifier(path, classifier.weights, names, {})
    message = refused()
    for name in ("shapes_train", "shapes_val"):
        assert (
            f"classifier.safetensors has the names of '{name}' in another order: class 4 is "
            f"{names[4]!r} instead of {classifier.names[4]!r}"
        ) in message


def test_other_names_are_allowed(tiny_run: TinyRun, monkeypatch, caplog) -> None:
    monkeypatch.setattr(training_script, "launch", lambda *args, **kwargs: None)
    path = tiny_run.root / "shapes" / "classifier.safetensors"
    classifier = load_text_classifier(path)
    meta = {"clip": "RN50", "pretrained": "openai"}
    save_text_classifier(path, classifier.weights, ["disc", *classifier.names[1:]], meta)
    run_here(tiny_run, "--eval-only")
    assert "calls 1 of 36 classes of 'shapes_val' by other names, the first: class 0" in caplog.text
    assert "was made with CLIP RN50 / openai, and MODEL.CLIP is ViT-B-32" in caplog.text


def test_a_metric_that_the_script_does_not_have(refused, tiny_run: TinyRun) -> None:
    name = "shapes_scored_otherwise"
    path = str(tiny_run.root / "shapes" / "shapes_val.json")
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        thing_classes=["thing"] * 36, json_file=path, evaluator_type="sem_seg"
    )
    try:
        message = refused("DATASETS.TEST", f"('{name}',)")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert f"{name!r} is scored by 'sem_seg', which this script can't do. It can: lvis" in message


def test_training_files_do_not_matter_to_an_evaluation(tiny_run: TinyRun) -> None:
    (tiny_run.root / "shapes" / "shapes_train_norare.json").unlink()
    (tiny_run.root / "shapes" / "clip_train.safetensors").unlink()
    run_here(tiny_run, "--eval-only", "SOLVER.IMS_PER_BATCH", "3", "SOLVER.ACCUMULATION_STEPS", "2")
    results = tiny_run.output / "inference" / "shapes_val" / "results.json"
    assert json.loads(results.read_text())


def test_missing_counts_of_categories(refused, tiny_run: TinyRun) -> None:
    """Of training only: an evaluation does without."""
    opts = ["MODEL.MASK_FORMER.CAT_INFO_PATH", "datasets/none.json"]
    assert "MODEL.MASK_FORMER.CAT_INFO_PATH: no file" in refused(*opts)


def test_counts_of_other_categories(refused, tiny_run: TinyRun) -> None:
    path = tiny_run.root / "counts.json"
    counts = [{**category, "image_count": 0} for category in load_categories("shapes")]
    counts[2]["name"], counts[5]["name"] = counts[5]["name"], counts[2]["name"]
    path.write_text(json.dumps(counts))
    message = refused("MODEL.MASK_FORMER.CAT_INFO_PATH", str(path))
    assert f"{path} has other categories than 'shapes_train': class 2 is" in message
    assert "counts no image of any category" in message


def test_an_evaluation_needs_no_training_set(tiny_run: TinyRun) -> None:
    opts = ["DATASETS.TRAIN", "('lvis_v1_train',)"]
    run_here(tiny_run, "--eval-only", *opts, "MODEL.MASK_FORMER.CAT_INFO_PATH", "none.json")
