import json

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from ovformer.modeling.language.clip_encoder import CLIPEncoder

PREPROCESS = {"size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.3, 0.25, 0.2]}
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP model in open_clip's folder format."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    model = open_clip.CLIP(**CONFIG)
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    config = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def encoder(folder) -> CLIPEncoder:
    return CLIPEncoder.from_pretrained(f"local-dir:{folder}")


def test_loading_draws_no_random_number_of_the_training(folder) -> None:
    state = torch.get_rng_state()
    CLIPEncoder.from_pretrained(f"local-dir:{folder}")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_local_model_is_frozen_and_has_its_weights(encoder, folder) -> None:
    assert (encoder.embed_dim, encoder.image_size) == (16, 32)
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())
    again = CLIPEncoder.from_pretrained(f"local-dir:{folder}", "ignored")
    assert torch.equal(again.encode_text(["a cat"]), encoder.encode_text(["a cat"]))


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (20, 25), (33, 32)])
def test_images_are_embedded_as_open_clip_does(encoder, size) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    transform = image_transform_v2(PreprocessCfg(**PREPROCESS), is_train=False)
    with torch.no_grad():
        expected = encoder.model.encode_image(transform(image)[None])
    prepared = encoder.preprocess(image)
    assert prepared.dtype == torch.uint8
    assert prepared.shape == (3, 32, 32)
    assert torch.equal(prepared, encoder.preprocess(pixels))
    got = encoder.encode_image(prepared[None])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode_image(prepared[None]), got)


def test_grey_and_transparent_images(encoder) -> None:
    rgb = Image.new("RGB", (40, 40), (90, 90, 90))
    for mode in ("L", "RGBA"):
        assert torch.equal(encoder.preprocess(rgb.convert(mode)), encoder.preprocess(rgb))


def test_text_has_unit_length_and_does_not_depend_on_the_batch(encoder) -> None:
    texts = [f"a photo of thing {i}" for i in range(300)]  # more than a batch
    together = encoder.encode_text(texts)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(300))
    torch.testing.assert_close(together[-1:], encoder.encode_text(texts[-1:]), rtol=1e-4, atol=1e-6)


def test_a_classifier_is_the_mean_over_templates(encoder) -> None:
    weights = encoder.embed_names(["cat", "big {dog}"], ["a {}.", "{} and {}"])
    first = encoder.encode_text(["a cat.", "a big {dog}."])
    second = encoder.encode_text(["cat and cat", "big {dog} and big {dog}"])
    torch.testing.assert_close(weights, F.normalize((first + second) / 2, dim=1))
    for names, templates, message in [
        ([], ["{}"], "0 class names and 1 templates"),
        (["cat"], [], "1 class names and 0 templates"),
        (["cat"], ["a photo"], r"'a photo' has no \{\}"),
    ]:
        with pytest.raises(ValueError, match=message):
            encoder.embed_names(names, templates)


def test_images_of_the_wrong_kind(encoder) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, 3, 32, 32\).*IMAGE_SIZE has to be 32"):
        encoder.encode_image(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="got torch.float32"):
        encoder.encode_image(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"got uint8 \(3, 40, 40\)"):
        encoder.preprocess(np.zeros((3, 40, 40), np.uint8))


def test_unknown_models_and_weights() -> None:
    with pytest.raises(ValueError, match=r"unknown open_clip model 'ViT-B-23'.*ViT-B-32"):
        CLIPEncoder.from_pretrained("ViT-B-23", "openai")
    for pretrained in ("openal", ""):
        with pytest.raises(ValueError, match=r"neither a file nor weights of 'ViT-B-32'.*openai"):
            CLIPEncoder.from_pretrained("ViT-B-32", pretrained)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", offline)
    with pytest.raises(
        OSError, match="'openai' .*no route to host.*MODEL.CLIP.PRETRAINED to a file"
    ):
        CLIPEncoder.from_pretrained("RN50", "openai")


def test_folders_that_lack_something(folder, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/open_clip_config\.json"):
        CLIPEncoder.from_pretrained(f"local-dir:{tmp_path}/nowhere")
    config = tmp_path / "open_clip_config.json"
    config.write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(FileNotFoundError, match="no weights"):
        CLIPEncoder.from_pretrained(f"local-dir:{tmp_path}")
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes((folder / weights.name).read_bytes())
    config.write_text("{")
    with pytest.raises(ValueError, match="CLIP model 'local-dir:|Could not load valid config"):
        CLIPEncoder.from_pretrained(f"local-dir:{tmp_path}")
    config.write_text(json.dumps({"model_cfg": CONFIG | {"embed_dim": 24}}))
    with pytest.raises(ValueError, match="size mismatch"):
        CLIPEncoder.from_pretrained(f"local-dir:{tmp_path}")
    config.write_text(json.dumps({"model_cfg": {"embed_dim": 16}}))
    with pytest.raises(ValueError, match="open_clip cannot build it .*text_cfg"):
        CLIPEncoder.from_pretrained(f"local-dir:{tmp_path}")


def test_a_file_of_weights_for_a_known_model(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", CONFIG)
    weights = folder / "open_clip_model.safetensors"
    encoder = CLIPEncoder.from_pretrained("tiny-test", str(weights))
    local = CLIPEncoder.from_pretrained(f"local-dir:{folder}")
    torch.testing.assert_close(
        encoder.model.state_dict()["visual.proj"], local.model.state_dict()["visual.proj"]
    )
