import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from ovformer.d2 import DetectionCheckpointer
from ovformer.modeling.backbone import D2SwinTransformer, TimmBackbone

LAYERS = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("convert-thirdparty-pretrained-model-to-d2")


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=5, **LAYERS)


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_a_timm_resnet_reaches_the_backbone(tool, resnet, tmp_path, wrap) -> None:
    source = tmp_path / "resnet.pth"
    state = resnet.state_dict()
    torch.save({wrap: state, "epoch": 3} if wrap else state, source)
    tool.main(["--path", str(source)])
    content = pickle.loads((tmp_path / "resnet.pkl").read_bytes())
    assert content["__author__"] == "third_party"
    assert content["matching_heuristics"] is True
    assert content["model"].keys() == state.keys()

    model = nn.Module()
    model.backbone = TimmBackbone("resnet18", (2, 3, 4, 5), kwargs=LAYERS)
    DetectionCheckpointer(model).load(str(tmp_path / "resnet.pkl"))
    for name, value in model.backbone.base.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[name]), name


def test_safetensors_and_an_output_elsewhere(tool, resnet, tmp_path) -> None:
    save_file(resnet.state_dict(), tmp_path / "model.safetensors")
    output = tmp_path / "new" / "backbone.pkl"
    tool.main(["--path", str(tmp_path / "model.safetensors"), "--output", str(output)])
    content = pickle.loads(output.read_bytes())
    assert content["model"]["conv1.weight"].shape == (64, 3, 7, 7)
    assert [p.name for p in output.parent.iterdir()] == ["backbone.pkl"]


def test_half_precision_is_stored_as_float32(tool, tmp_path) -> None:
    torch.save({"w": torch.tensor([1.5], dtype=torch.bfloat16)}, tmp_path / "half.pth")
    tool.main(["--path", str(tmp_path / "half.pth")])
    weight = pickle.loads((tmp_path / "half.pkl").read_bytes())["model"]["w"]
    assert (weight.dtype, weight.tolist()) == ("float32", [1.5])


def test_timms_swin_gives_timms_features(tool, tmp_path) -> None:
    torch.manual_seed(0)
    settings = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=256, window_size=4, num_classes=0, **settings
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    tool.main(["--path", str(tmp_path / "swin.pth")])
    ours = nn.Module()
    ours.backbone = D2SwinTransformer(window_size=4, **settings).eval()
    DetectionCheckpointer(ours).load(str(tmp_path / "swin.pkl"))
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        got = ours.backbone(image)
        expected = theirs.forward_intermediates(image, intermediates_only=True)
    for x, y in zip(got.values(), expected, strict=True):
        # The norms of the features are not in a classifier's checkpoint: here they are new.
        y = F.layer_norm(y.permute(0, 2, 3, 1), y.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_files_that_hold_no_weights(tool, tmp_path, user_error) -> None:
    path = tmp_path / "x.pth"
    for content in ({"model": nn.Linear(1, 1)}, {"epoch": 3}, [torch.zeros(1)]):
        torch.save(content, path)
        assert "x.pth" in user_error(tool.main, "--path", path)
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 4)
    assert "x.safetensors" in user_error(tool.main, "--path", tmp_path / "x.safetensors")
    message = user_error(tool.main, "--path", path, "--output", tmp_path / "y.pth")
    assert "--output" in message and ".pkl" in message
    assert not list(tmp_path.glob("*.pkl"))
