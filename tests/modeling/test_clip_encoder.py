import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn import functional as F

from ovformer.modeling.language.clip_encoder import CLIPEncoder
from support.tiny_clip import make_clip

PREPROCESS = {"size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.3, 0.25, 0.2]}


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    """A tiny CLIP model in open_clip's folder format."""
    return make_clip(tmp_path_factory.mktemp("clip") / "tiny", preprocess_cfg=PREPROCESS)


@pytest.fixture(scope="module")
def encoder(name) -> CLIPEncoder:
    return CLIPEncoder.from_pretrained(name)


def test_a_local_model_is_frozen_and_has_its_weights(encoder, name) -> None:
    assert (encoder.embed_dim, encoder.image_size) == (16, 32)
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())
    state = torch.get_rng_state()
    again = CLIPEncoder.from_pretrained(name, "ignored")
    assert torch.equal(torch.get_rng_state(), state)  # a resumed training goes on with its own
    assert torch.equal(again.encode_text(["a cat"]), encoder.encode_text(["a cat"]))


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (20, 25)])
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
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"uint8 \(N, 3, 32, 32\).*IMAGE_SIZE has to be 32"):
        encoder.encode_image(images[..., :16])
    with pytest.raises(ValueError, match="got torch.float32"):
        encoder.encode_image(images.float())
    with pytest.raises(ValueError, match=r"got uint8 \(3, 32, 32\)"):
        encoder.preprocess(images[0].numpy())


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-23", "openai", r"unknown open_clip model 'ViT-B-23'.*ViT-B-32"),
        ("ViT-B-32", "openal", r"neither a file nor weights of 'ViT-B-32'.*openai"),
        ("ViT-B-32", "", r"neither a file nor weights of 'ViT-B-32'.*openai"),
    ],
)
def test_unknown_models_and_weights(name, pretrained, message) -> None:
    with pytest.raises(ValueError, match=message):
        CLIPEncoder.from_pretrained(name, pretrained)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fail)
    message = "'openai' .*no route to host.*MODEL.CLIP.PRETRAINED to a file"
    with pytest.raises(OSError, match=message):
        CLIPEncoder.from_pretrained("RN50", "openai")


def test_folders_that_lack_something(tmp_path) -> None:
    name = make_clip(tmp_path / "clip")
    config = tmp_path / "clip/open_clip_config.json"
    model = json.loads(config.read_text())["model_cfg"]
    for text, message in (
        ("{", "CLIP model 'local-dir:|Could not load valid config"),
        (json.dumps({"model_cfg": {**model, "embed_dim": 24}}), "size mismatch"),
        (json.dumps({"model_cfg": {"embed_dim": 16}}), "open_clip cannot build it .*text_cfg"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            CLIPEncoder.from_pretrained(name)
    for file, message in (
        ("open_clip_model.safetensors", "no weights"),
        ("open_clip_config.json", r"clip/open_clip_config\.json"),
    ):
        (tmp_path / "clip" / file).unlink()
        with pytest.raises(FileNotFoundError, match=message):
            CLIPEncoder.from_pretrained(name)


def test_a_file_of_weights_for_a_known_model(encoder, name, monkeypatch) -> None:
    folder = Path(name.removeprefix("local-dir:"))
    model = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", model)
    loaded = CLIPEncoder.from_pretrained("tiny-test", str(folder / "open_clip_model.safetensors"))
    torch.testing.assert_close(loaded.model.state_dict(), encoder.model.state_dict())
