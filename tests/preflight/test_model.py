"""Models without memory, and weights that are looked at without being read."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec, build_model
from ovformer.engine.checkpoint import Checkpointer, collect_metadata, read_weights
from ovformer.preflight.model import DryRun, build_without_memory, find_weights_errors
from support.tiny_runs import TinyRun

LEVELS = ("layer2", "layer3", "layer4", "layer5")


class ComputingBackbone(Backbone):
    """A constructor that reads a value, which has none on the meta device."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.conv = nn.Conv2d(3, round(torch.full((1,), 8.0).item()), 1)

    def forward(self, images):
        return dict.fromkeys(LEVELS, self.conv(images))

    def output_shape(self):
        return {name: ShapeSpec(channels=8, stride=2**n) for n, name in enumerate(LEVELS, start=2)}


@pytest.fixture
def cfg(tiny_run: TinyRun, tmp_path: Path):
    cfg = get_ovformer_cfg(str(tiny_run.config), ["OUTPUT_DIR", str(tmp_path)])
    cfg.defrost()
    return cfg


def test_nothing_is_allocated_and_no_random_number_drawn(cfg) -> None:
    before = torch.get_rng_state()
    model = build_without_memory(cfg)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(value.is_meta for value in model.state_dict().values())
    assert torch.empty(1).device.type == "cpu"


def test_a_backbone_that_computes_when_it_is_made(cfg) -> None:
    BACKBONE_REGISTRY.register(ComputingBackbone)
    try:
        cfg.MODEL.BACKBONE.NAME = "ComputingBackbone"
        model = build_without_memory(cfg)
    finally:
        del BACKBONE_REGISTRY._obj_map["ComputingBackbone"]
    assert model.backbone.conv.weight.device.type == "cpu"


def test_weights_that_fit(cfg, tmp_path: Path, recwarn) -> None:
    real, path = build_model(cfg), tmp_path / "model.pth"
    for content, is_whole in (
        ({"model": real.state_dict(), "iteration": 9}, True),
        (real.backbone.base.state_dict(), False),
    ):
        torch.save(content, path)
        model = build_without_memory(cfg)
        reader = DryRun(model)
        reader.load(str(path))
        assert reader.has_loaded_all == is_whole
        assert reader.content.get("iteration") == content.get("iteration")
        assert all(parameter.is_meta for parameter in model.parameters())
    assert not [w for w in recwarn if "meta" in str(w.message)]


@pytest.mark.parametrize("is_zip", [True, False])
def test_reading_by_and_by_gives_the_same(tmp_path: Path, is_zip: bool) -> None:
    path, array = tmp_path / "weights.pth", torch.arange(5.0)
    torch.save({"model": {"a": array}}, path, _use_new_zipfile_serialization=is_zip)
    assert torch.equal(read_weights(path, mmap=True)["model"]["a"], array)


def test_what_is_fetched_is_not_looked_for(cfg) -> None:
    cfg.MODEL.WEIGHTS = "https://example.org/model.pth"
    assert not list(find_weights_errors(cfg, None, resume=False))


@pytest.mark.parametrize(
    ("key", "value"), [("MODEL.META_ARCHITECTURE", "VideoOVFormer"), ("SOLVER.OPTIMIZER", "SGD")]
)
def test_a_resumed_training_keeps_its_kind(cfg, tmp_path: Path, key: str, value: str) -> None:
    Checkpointer(build_model(cfg), str(tmp_path), metadata=collect_metadata(cfg)).save(
        "model_final"
    )
    model = build_without_memory(cfg)
    assert not list(find_weights_errors(cfg, model, resume=True, is_training=True))
    cfg.merge_from_list([key, value])
    assert not list(find_weights_errors(cfg, model, resume=True))  # an evaluation may
    (error,) = find_weights_errors(cfg, model, resume=True, is_training=True)
    assert "--resume: " in error and f"{key} " in error and f"now it is {value}." in error
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    assert not list(find_weights_errors(cfg, model, resume=False, is_training=True))


def test_a_checkpoint_that_does_not_say_what_it_was(cfg, tmp_path: Path) -> None:
    weights, model = build_model(cfg).state_dict(), build_without_memory(cfg)
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    for metadata in ([], *({"config": config} for config in (3, "{", "7", "SOLVER: 1"))):
        torch.save({"model": weights, "metadata": metadata}, tmp_path / "model_final.pth")
        assert not list(find_weights_errors(cfg, model, resume=True, is_training=True))
