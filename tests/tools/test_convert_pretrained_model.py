import pickle

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from ovformer.d2 import DetectionCheckpointer
from ovformer.modeling.backbone import D2SwinTransformer, TimmBackbone

TOOL = "convert-thirdparty-pretrained-model-to-d2"


def test_a_timm_resnet_reaches_the_backbone(tool, tmp_path) -> None:
    sizes = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    state = timm.create_model("resnet18", num_classes=5, **sizes).state_dict()
    output = tmp_path / "new" / "backbone.pkl"
    save_file(state, tmp_path / "bare.safetensors")
    torch.save({"model": state, "epoch": 3}, tmp_path / "model.pth")
    torch.save({"state_dict": state}, tmp_path / "state_dict.pth")
    tool.main(["--path", str(tmp_path / "bare.safetensors"), "--output", str(output)])
    assert [p.name for p in output.parent.iterdir()] == ["backbone.pkl"]
    tool.main(["--path", str(tmp_path / "model.pth")])
    tool.main(["--path", str(tmp_path / "state_dict.pth")])
    for path in (output, tmp_path / "model.pkl", tmp_path / "state_dict.pkl"):
        content = pickle.loads(path.read_bytes())
        assert content["__author__"] == "third_party" and content["matching_heuristics"] is True
        assert content["model"].keys() == state.keys()

    model = nn.Module()
    model.backbone = TimmBackbone("resnet18", (2, 3, 4, 5), kwargs=sizes)
    DetectionCheckpointer(model).load(str(output))
    for name, value in model.backbone.base.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[name]), name


def test_half_precision_is_stored_as_float32(tool, tmp_path) -> None:
    torch.save({"w": torch.tensor([1.5], dtype=torch.bfloat16)}, tmp_path / "half.pth")
    tool.main(["--path", str(tmp_path / "half.pth")])
    weight = pickle.loads((tmp_path / "half.pkl").read_bytes())["model"]["w"]
    assert (weight.dtype, weight.tolist()) == ("float32", [1.5])


def test_timms_swin_gives_timms_features(tool, tmp_path) -> None:
    torch.manual_seed(0)
    settings = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
    sizes = {"img_size": 256, "window_size": 4, "num_classes": 0}
    theirs = timm.create_model("swin_tiny_patch4_window7_224", **sizes, **settings).eval()
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


def test_files_without_weights(tool, tmp_path, user_error) -> None:
    path = tmp_path / "x.pth"
    for content in ({"model": nn.Linear(1, 1)}, {"epoch": 3}, [torch.zeros(1)]):
        torch.save(content, path)
        assert "x.pth" in user_error(tool.main, "--path", path)
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 4)
    assert "x.safetensors" in user_error(tool.main, "--path", tmp_path / "x.safetensors")
    message = user_error(tool.main, "--path", path, "--output", tmp_path / "y.pth")
    assert "--output" in message and ".pkl" in message
    assert not list(tmp_path.glob("*.pkl"))
