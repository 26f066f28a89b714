"""Checkpoints: what can be read, what is refused, and a kill in the middle of saving."""

import multiprocessing
import os
import pickle
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ovformer.engine.checkpoint import Checkpointer, VocabularyError, read_weights
from ovformer.modeling.backbone.swin import D2SwinTransformer

SEED_VALUE = 0.25


class Head(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.class_embed = nn.Linear(2, 2)
        self.class_embed.register_buffer("zs_weight", torch.full((2, num_classes + 1), 7.0))


class Model(nn.Module):
    """The names of the real model, in small."""

    VOCABULARY_KEYS = ("sem_seg_head.class_embed.zs_weight", "criterion.freq_weight")

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.base = nn.ModuleDict({"conv1": nn.Conv2d(1, 1, 1), "bn": nn.BatchNorm2d(1)})
        self.backbone.norm0 = nn.LayerNorm(1)
        self.sem_seg_head = Head(num_classes)
        self.criterion = nn.Module()
        self.criterion.register_buffer("freq_weight", torch.full((num_classes,), 9.0))


def filled(model: nn.Module, value: float = SEED_VALUE) -> dict[str, Tensor]:
    """A state dict of the model's shapes, all of one value."""
    return {name: torch.full_like(v, value) for name, v in model.state_dict().items()}


def load(path: Path, model: nn.Module | None = None, **options) -> nn.Module:
    model = model or Model()
    Checkpointer(model, **options).load(str(path))
    return model


def trained_parameters(model: nn.Module) -> set[float]:
    return {p.flatten()[0].item() for p in model.parameters()}


def write_pth(path: Path, weights: dict) -> None:
    """With numbers of numpy, as old detectron2 checkpoints have them in the optimizer's state."""
    numbers = [np.float32(1), np.float64(2), np.int64(3)]
    torch.save({"model": weights, "iteration": 9, "trainer": numbers}, path)


def write_pickle(path: Path, weights: dict) -> None:
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "test"}))


@pytest.mark.parametrize(
    ("write", "suffix"),
    [
        (write_pth, "pth"),
        (lambda path, weights: torch.save(weights, path), "pth"),
        (lambda path, weights: torch.save({"state_dict": weights}, path), "bin"),
        (
            lambda path, weights: write_pth(path, {f"module.{k}": v for k, v in weights.items()}),
            "pth",
        ),
        (
            lambda path, weights: write_pickle(path, {k: v.numpy() for k, v in weights.items()}),
            "pkl",
        ),
        (write_pickle, "pkl"),
        (lambda path, weights: save_file(weights, path), "safetensors"),
    ],
)
def test_formats(tmp_path: Path, write: Callable, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    write(path, filled(Model()))
    assert trained_parameters(load(path)) == {SEED_VALUE}


def test_the_vocabulary_is_the_configs(tmp_path: Path, caplog) -> None:
    path = tmp_path / "model.pth"
    for num_classes in (3, 5):  # the same number silently replaced it in the published code
        write_pth(path, filled(Model(num_classes)))
        with caplog.at_level("INFO", "fvcore"):
            model = load(path)
        assert trained_parameters(model) == {SEED_VALUE}
        assert model.sem_seg_head.class_embed.zs_weight.unique().tolist() == [7]
        assert model.criterion.freq_weight.unique().tolist() == [9]
        assert f"text embeddings of {num_classes} classes in the checkpoint are not" in caplog.text


def test_constants_and_vocabulary_may_be_absent(tmp_path: Path) -> None:
    weights = {k: v for k, v in filled(Model()).items() if k not in Model.VOCABULARY_KEYS}
    del weights["backbone.base.bn.num_batches_tracked"]
    for name in ("pixel_mean", "backbone.layers.0.attn_mask"):
        weights[name] = torch.zeros(1)
    weights["backbone.layers.0.attn.relative_position_index"] = torch.zeros(1)
    write_pth(tmp_path / "model.pth", weights)
    assert trained_parameters(load(tmp_path / "model.pth")) == {SEED_VALUE}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sem_seg_head.class_embed.bias": None}, "missing in it: sem_seg_head.class_embed.bias"),
        (
            {f"other.{i}": torch.zeros(1) for i in range(9)},
            "9 .* not in the model: other.0, other.1, other.2, other.3, other.4 and 4 more",
        ),
        (
            {"backbone.base.conv1.weight": torch.zeros(2, 2)},
            r"shape: backbone.base.conv1.weight \(2, 2\), in the model \(1, 1, 1, 1\)",
        ),
    ],
)
def test_a_checkpoint_of_another_model(tmp_path: Path, change: dict, words: str) -> None:
    weights = {k: v for k, v in {**filled(Model()), **change}.items() if v is not None}
    write_pth(tmp_path / "model.pth", weights)
    model = Model()
    before = trained_parameters(model)
    with pytest.raises(ValueError, match=rf"model\.pth does not fit the model\. .*{words}"):
        load(tmp_path / "model.pth", model)
    assert trained_parameters(model) == before


@pytest.mark.parametrize(
    ("weights", "model", "missing"),
    [
        ({"weight": torch.zeros(1)}, nn.Linear(1, 1), "bias"),  # a model without backbone
        ({"visual.proj": torch.zeros(1)}, Model(), "backbone"),  # something else
        ({"conv1.weight": torch.zeros(1, 1, 1, 1)}, Model(), "backbone.base.bn.bias"),  # a part
    ],
)
def test_not_a_whole_backbone(
    tmp_path: Path, weights: dict, model: nn.Module, missing: str
) -> None:
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=rf"missing in it: .*{missing}"):
        load(tmp_path / "model.pth", model)


def backbone_weights(prefix: str = "") -> dict[str, Tensor]:
    state = filled(Model().backbone.base)
    return {prefix + k: v for k, v in state.items() if "num_batches" not in k}


@pytest.mark.parametrize("prefix", ["", "backbone.base.", "base."])
def test_a_backbone_alone(tmp_path: Path, caplog, prefix: str) -> None:
    """As timm and detectron2 write it; the classifier of its pre-training is not used."""
    classifier = {} if prefix else {"fc.weight": torch.zeros(5, 1)}
    torch.save(backbone_weights(prefix) | classifier, tmp_path / "resnet.pth")
    model = Model()
    before = model.sem_seg_head.class_embed.weight.clone()
    with caplog.at_level("INFO", "fvcore"):
        load(tmp_path / "resnet.pth", model)
    assert model.backbone.base["conv1"].weight.item() == SEED_VALUE
    assert model.backbone.base["bn"].running_mean.item() == SEED_VALUE
    assert torch.equal(model.sem_seg_head.class_embed.weight, before)
    assert ("Not used: backbone.base.fc.weight" in caplog.text) is not bool(prefix)


def test_a_file_that_says_that_it_is_a_backbone(tmp_path: Path) -> None:
    """What tools/convert-thirdparty-pretrained-model-to-d2.py writes."""
    content = {"model": backbone_weights(), "__author__": "x", "matching_heuristics": True}
    (tmp_path / "resnet.pkl").write_bytes(pickle.dumps(content))
    assert load(tmp_path / "resnet.pkl").backbone.base["conv1"].weight.item() == SEED_VALUE


def test_the_file_of_swin(tmp_path: Path) -> None:
    """The norms of the outputs are new, the classifier and what can be computed are not needed."""
    arguments = {"embed_dim": 4, "depths": (1, 2), "num_heads": (1, 2), "window_size": 2}
    arguments["out_features"] = ("res2", "res3")
    source, model = D2SwinTransformer(**arguments), nn.Module()
    model.backbone, model.sem_seg_head = D2SwinTransformer(**arguments), nn.Linear(1, 1)
    absent = re.compile("norm[01].|.*relative_position_index")
    expected = {k: v for k, v in source.state_dict().items() if not absent.match(k)}
    weights = expected | {"norm.weight": torch.ones(8), "head.weight": torch.zeros(5, 8)}
    weights["layers.0.blocks.0.attn_mask"] = torch.zeros(1, 4, 4)
    torch.save({"model": weights}, tmp_path / "swin.pth")
    load(tmp_path / "swin.pth", model)
    for name, value in expected.items():
        assert torch.equal(model.backbone.state_dict()[name], value), name

    weights["layers.0.blocks.0.attn.relative_position_bias_table"] = torch.zeros(25, 1)
    torch.save({"model": weights}, tmp_path / "swin.pth")
    with pytest.raises(ValueError, match=r"relative_position_bias_table \(25, 1\), in the model"):
        load(tmp_path / "swin.pth", model)


@pytest.mark.parametrize("name", ["model.pkl", "model.pth", "model.safetensors"])
def test_a_truncated_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    writers = {"pkl": write_pickle, "pth": write_pth, "safetensors": lambda p, w: save_file(w, p)}
    writers[name.removeprefix("model.")](path, filled(Model()))
    for content in (path.read_bytes()[:-200], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_weights(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {}])
def test_no_weights_in_it(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth .*Expected a state dict"):
        read_weights(tmp_path / "model.pth")


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth .*MODEL\.WEIGHTS"):
        load(Path("nowhere.pth"))


def test_relative_to_the_dataset_root(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_pth(tmp_path / "model.pth", filled(Model()))
    assert trained_parameters(load(Path("datasets/model.pth"))) == {SEED_VALUE}


class Counter:
    """Something to save along with the model."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (["cat", "dog", "owl"], "class 2 is 'cow' instead of 'owl'"),
        (["cat", "dog"], "3 classes instead of 2"),
    ],
)
def test_another_vocabulary(tmp_path: Path, caplog, names: list[str], difference: str) -> None:
    """May be used with the weights, but a training is not resumed with it."""

    def checkpointer(names: list[str], **others: Counter) -> Checkpointer:
        return Checkpointer(Model(), str(tmp_path), class_names=names, **others)

    old, counter = ["cat", "dog", "cow"], Counter()
    checkpointer(old, trainer=Counter(5)).save("model_final")
    checkpointer(old, trainer=counter).resume_or_load("not used", resume=True)
    assert counter.value == 5
    with caplog.at_level("INFO", "fvcore"):
        checkpointer(names).resume_or_load("", resume=True)
    assert f"was trained with another vocabulary: {difference}" in caplog.text
    with pytest.raises(VocabularyError, match=rf"--resume: .*{difference}.*MODEL\.WEIGHTS"):
        checkpointer(names, trainer=Counter()).resume_or_load("", resume=True)
    path = str(tmp_path / "model_final.pth")
    checkpointer(names, trainer=Counter()).resume_or_load(path, resume=False)


def save_and_die(folder: Path, moment: str, name: str) -> None:
    """Save weights of 1, then be killed while saving weights of 2."""
    model = nn.Linear(1, 1)
    checkpointer = Checkpointer(model, str(folder))
    nn.init.constant_(model.weight, 1.0)
    checkpointer.save("model_0000001")
    nn.init.constant_(model.weight, 2.0)

    def die_in_the_middle(content: object, file: BinaryIO) -> None:
        file.write(b"half a file")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def die_at_last_checkpoint(old: Path, new: Path) -> None:
        if new.name == "last_checkpoint":
            os.kill(os.getpid(), signal.SIGKILL)
        old.rename(new)

    if moment == "model":
        torch.save = die_in_the_middle
    else:
        os.replace = die_at_last_checkpoint
    checkpointer.save(name)


@pytest.mark.parametrize("moment", ["model", "last_checkpoint"])
@pytest.mark.parametrize("name", ["model_0000001", "model_final"])
def test_killed_while_saving(tmp_path: Path, moment: str, name: str) -> None:
    """Whichever file was being written, and also when it had the name of an older one."""
    process = multiprocessing.get_context("fork").Process(
        target=save_and_die, args=(tmp_path, moment, name)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    model = nn.Linear(1, 1)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.resume_or_load("", resume=True)
    replaced = moment == "last_checkpoint" and name == "model_0000001"
    assert model.weight.item() == (2 if replaced else 1)
    checkpointer.save("model_final")  # incomplete files do not disturb
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_only_the_main_process_saves(tmp_path: Path) -> None:
    Checkpointer(Model(), str(tmp_path), save_to_disk=False).save("model_final")
    assert list(tmp_path.iterdir()) == []
