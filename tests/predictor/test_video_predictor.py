import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovformer.d2 import transforms as T
from ovformer.data.files.video_files import Frame
from ovformer.data.samples.augmentation import build_evaluation_augmentations
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from ovformer.predictor import VideoPredictor
from support.predictor_fixture import TEMPLATES, WORDS, make_clip

TEXT_EMBEDDINGS = "sem_seg_head.predictor.class_embed.zs_weight"


class Camera:
    """Frames that arrive one by one, and the number of those that were taken."""

    def __init__(self, frames: list[np.ndarray]) -> None:
        self.frames = iter(frames)
        self.taken = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self.frames:
            self.taken += 1
            yield frame


def load(trained: Path, vocabulary=None, **options) -> VideoPredictor:
    return VideoPredictor.from_checkpoint(None, trained, vocabulary, device="cpu", **options)


def weights_of(predictor: VideoPredictor) -> torch.Tensor:
    return predictor.model.sem_seg_head.predictor.class_embed.zs_weight[:, :-1].t()


def test_frames_are_resized_as_in_evaluation(predictor, make_frames) -> None:
    for size in ((48, 64), (100, 40), (30, 200)):
        frame = make_frames(1, size)[0]
        expected = T.AugInput(frame)
        T.AugmentationList(build_evaluation_augmentations(64, 128))(expected)
        got = predictor._make_record(Frame(frame, 0.0, 0))["image"]
        np.testing.assert_array_equal(got.permute(1, 2, 0), expected.image)


def test_predict_returns_the_predictions_of_the_model(predictor, make_frames) -> None:
    frames = make_frames(7)
    result = predictor.predict(frames)
    model = predictor.model
    records = [predictor._make_record(Frame(frame, 0.0, 0)) for frame in frames]
    record = {"video_id": 1, "height": 48, "width": 64}
    record |= {key: [image[key] for image in records] for key in ("image", "clip_image")}
    expected = model([record])[0]
    scores = [item.score for item in result.objects]
    assert scores == pytest.approx(expected["pred_scores"], rel=1e-4)
    assert [item.segmentations for item in result.objects] == expected["segmentations"]
    assert [item.name for item in result.objects] == [WORDS[i] for i in expected["pred_labels"]]
    assert result.size == (48, 64) and len(result.times) == 7 and result.objects
    best = result.best(max_objects=2)
    assert 0 < len(best.objects) <= 2
    for item in best.in_frame(3):
        rows, columns = np.nonzero(item.mask)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert item.mask.shape == (48, 64) and item.box == box


def assert_in_video(found, whole, t: int) -> None:
    """Each object of a frame is one of the video's, with its mask in frame ``t`` and its score."""
    assert found
    for item in found:
        assert any(
            other.label == item.label
            and other.segmentations[t] == item.rle
            and abs(other.score - item.score) < 1e-5
            for other in whole.objects
        )


def test_a_stream_ends_with_the_scores_of_the_video(predictor, make_frames, monkeypatch) -> None:
    """If no frame is ignored, the running mean ends as the mean over the whole video."""
    monkeypatch.setattr(predictor.model, "frame_score_ratio", 0.0)
    frames = make_frames(9)
    whole = predictor.predict(frames, max_objects=18)
    last = list(predictor.stream(iter(frames), max_iou=1.0, max_objects=6))[-1]
    assert last.number == 8 and last.size == (48, 64)
    assert last.num_asleep == 0  # every track is an object, and in sight
    assert_in_video(last.objects, whole, 8)
    assert [o.score for o in last.objects] == sorted((o.score for o in last.objects), reverse=True)


def test_the_clip_model_on_a_stream(trained, make_frames) -> None:
    """One clip at a time; the last one has the scores and masks of the whole video."""
    predictor = load(trained, architecture="clip")
    whole = predictor.predict(make_frames(7), max_objects=18)
    camera = Camera(make_frames(7))
    stream = predictor.stream(camera, max_iou=1.0, max_objects=6)
    results = [next(stream)]
    assert camera.taken == predictor.model.window_size == 5
    results += stream
    assert [result.number for result in results] == list(range(7))
    for t in (5, 6):
        assert_in_video(results[t].objects, whole, t)


@pytest.mark.parametrize("window", [2, 4])
def test_the_window_changes_latency_and_nothing_else(predictor, make_frames, window) -> None:
    """A stream takes the frames of a window together; each gets the same result as alone."""
    camera, alone = Camera(make_frames(7)), []
    for result in predictor.stream(camera):
        alone.append(result)
        assert camera.taken == len(alone)  # it waits for no later frame
    camera = Camera(make_frames(7))
    stream = predictor.stream(camera, window=window)
    together = [next(stream)]
    assert camera.taken == window
    together += stream
    for one, other in zip(alone, together, strict=True):
        assert (one.number, one.time) == (other.number, other.time)
        assert [o.track_id for o in one.objects] == [o.track_id for o in other.objects]
        scores = [o.score for o in other.objects]
        assert [o.score for o in one.objects] == pytest.approx(scores, rel=1e-4)


def test_the_vocabulary_and_its_prompts(trained, make_frames) -> None:
    predictor = load(trained, "dog, red ball")
    model = predictor.model
    assert predictor.names == ["dog", "red ball"]
    encoder = CLIPEncoder.from_pretrained(f"local-dir:{trained.parent / 'clip'}")
    expected = encoder.embed_names(["dog", "red ball"], TEMPLATES)
    torch.testing.assert_close(weights_of(predictor), expected)
    names = {item.name for item in predictor.predict(make_frames(2)).objects}
    assert names <= {"dog", "red ball"}
    results = predictor.stream(make_frames(4))
    next(results)
    predictor.set_vocabulary(["person, on a skateboard"])
    assert predictor.names == ["person, on a skateboard"] and predictor.model is model
    assert predictor.predict(make_frames(2)).objects[0].name == "person, on a skateboard"
    assert {item.name for result in results for item in result.objects} == {*predictor.names}
    # Names of the weights keep their embeddings only under the vocabulary "checkpoint".
    other = load(trained, WORDS, templates=["my {}"])
    torch.testing.assert_close(weights_of(other), encoder.embed_names(WORDS, ["my {}"]))
    assert len(load(trained, "dog", templates=["simple"])._embedder.templates) == 7
    predictor.set_vocabulary("checkpoint, cat")
    assert predictor.names == [*WORDS, "cat"]
    with pytest.raises(ValueError, match="vocabulary"):
        predictor.set_vocabulary(" , ")
    assert predictor.names == [*WORDS, "cat"]  # as before


def test_weights_without_names_have_no_vocabulary(trained, tmp_path) -> None:
    content, path = torch.load(trained, weights_only=True), tmp_path / "model.pth"
    torch.save({**content, "class_names": []}, path)
    assert load(path, "dog").names == ["dog"]
    with pytest.raises(ValueError, match="'checkpoint'"):
        load(path, "checkpoint, dog")
    torch.save({**content, "class_names": WORDS[:2]}, path)
    with pytest.raises(ValueError, match=r"\b2 class names.*\b3 text embeddings"):
        load(path, "dog")


def test_images_and_the_image_model(trained, predictor, make_frames, tmp_path) -> None:
    frame = make_frames(1)[0]
    image = load(trained, architecture="image")
    assert type(image.model).__name__ == "OVFormer"
    expected = image.model([image._make_record(Frame(frame, 0.0, 0))])[0]["instances"]
    result = image.predict(frame)
    expected_scores = expected.scores.tolist()[: len(result.objects)]
    assert [o.score for o in result.objects] == pytest.approx(expected_scores, abs=1e-6)
    masks = [item.mask for item in result.objects]
    seen = expected[expected.pred_masks.flatten(1).any(1)]
    np.testing.assert_array_equal(masks, seen.pred_masks.numpy())
    twice = image.predict([frame, frame])
    assert len(twice.objects) == 2 * len(result.objects)
    assert twice.in_frame(0) == twice.in_frame(1) == result.in_frame(0)
    path = tmp_path / "one.png"
    Image.fromarray(frame).save(path)
    for same in (path, str(path), Image.fromarray(frame), [frame]):
        assert predictor.predict(same).objects == predictor.predict(frame).objects


def test_weights_without_metadata_need_a_config_and_a_vocabulary(trained, tmp_path) -> None:
    content = torch.load(trained, weights_only=True)
    assert content["metadata"]["templates"] == TEMPLATES
    clip = {"name": f"local-dir:{trained.parent / 'clip'}", "pretrained": ""}
    assert content["metadata"]["clip"] == clip
    bare, config = tmp_path / "published.pth", tmp_path / "given.yaml"
    torch.save({"model": content["model"]}, bare)
    config.write_text(content["metadata"]["config"])
    with pytest.raises(FileNotFoundError, match="--config-file"):
        load(bare)
    with pytest.raises(ValueError, match="vocabulary 'checkpoint'"):
        VideoPredictor.from_checkpoint(config, bare, device="cpu")
    predictor = VideoPredictor.from_checkpoint(config, bare, "dog", device="cpu")
    assert predictor.names == ["dog"]
    assert predictor._embedder.templates == TEMPLATES  # of the text classifier in the config
    config.rename(tmp_path / "config.yaml")  # as a training writes it beside its checkpoints
    assert load(bare, "dog").names == ["dog"]


def test_missing_weights_and_unknown_architectures_are_named(trained) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load(Path("nowhere.pth"))
    with pytest.raises(ValueError, match="architecture.*'film'.*image, video, clip"):
        load(trained, architecture="film")


def test_another_clip_model_is_refused(trained, make_frames, tmp_path) -> None:
    other = make_clip(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="'local-dir:"):
        load(trained, "dog", clip=(other, ""))
    # The vocabulary of the weights needs no text model, but frames need the image model.
    with pytest.raises(ValueError, match="local-dir:"):
        load(trained, clip=(other, "")).predict(make_frames(1))
    wider = make_clip(tmp_path / "wider", width=32)
    with pytest.raises(ValueError, match=r"\b32\b.*\b16\b"):
        load(trained, "dog", clip=(wider, ""))


def test_the_same_clip_model_may_be_in_another_place(trained, tmp_path) -> None:
    """Embeddings tell whether it is the same; where prompts are not known, the name has to."""
    clip, changed = (make_clip(tmp_path / "copy"), ""), tmp_path / "model.pth"
    assert load(trained, "dog", clip=clip).names == ["dog"]
    content = torch.load(trained, weights_only=True)
    content["model"][TEXT_EMBEDDINGS][:, 1] *= -1
    torch.save(content, changed)
    with pytest.raises(ValueError, match=r"'blue ring'.*-1\.00"):  # the name that differs most
        load(changed, "dog", clip=clip)
    content["metadata"]["templates"] = []
    torch.save(content, changed)
    with pytest.raises(ValueError, match="local-dir:"):
        load(changed, "dog", clip=clip)


def test_long_vocabularies_long_names_and_other_scripts(trained, make_frames, caplog) -> None:
    words = ["犬", "красный мяч", "كلب", "🐕", "x" * 100_000]
    predictor = load(trained, [*words, *(f"thing {i}" for i in range(10_000))])
    assert predictor.model.num_classes == len(predictor.names) == 10_005
    assert "CLIP" in caplog.text  # cuts off the long name
    for result in (predictor.predict(make_frames(1)), next(predictor.stream(make_frames(1)))):
        assert {item.name for item in result.objects} <= {*predictor.names}


def test_frames_of_different_sizes_and_no_frames(predictor, make_frames) -> None:
    frames = [*make_frames(1), *make_frames(1, (40, 64))]
    for run in (predictor.predict, lambda frames: list(predictor.stream(frames))):
        with pytest.raises(ValueError, match=r"frame 1 .*40 x 64.*48 x 64"):
            run(frames)
    with pytest.raises(ValueError, match="no frame"):
        predictor.predict([])
    assert list(predictor.stream([])) == []
    with pytest.raises(ValueError, match="window.*got 0"):
        next(predictor.stream(frames, window=0))


@pytest.mark.parametrize("size", [(1, 1), (7, 4000), (4000, 7), (2, 3)])
def test_odd_sizes(predictor, make_frames, size) -> None:
    frames = [np.full((*size, 3), 90, np.uint8)] * 2
    assert predictor.predict(frames).size == size
    for result in predictor.stream(frames):
        assert all(item.mask.shape == size for item in result.objects)


STREAM = """
import sys, time
import numpy as np
from ovformer.predictor import VideoPredictor

predictor = VideoPredictor.from_checkpoint(None, sys.argv[1], device="cpu")
frames = (np.full((128, 160, 3), t % 250, np.uint8) for t in range(600))
memory, ends, found = [], [time.process_time()], 0
for result in predictor.stream(frames):
    found += len(result.objects)
    if result.number % 100 == 99:
        memory.append(int(open("/proc/self/statm").read().split()[1]))
        ends.append(time.process_time())
seconds = np.diff(ends)
assert found and max(memory) < 1.05 * memory[0], memory
assert max(seconds[3:]) < 2 * min(seconds[:3]), seconds
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads a process's memory")
def test_memory_of_a_stream_does_not_grow(trained) -> None:
    """Memory stays within 5 % after the first 100 of 600 frames; later frames take no longer."""
    subprocess.run([sys.executable, "-c", STREAM, str(trained)], check=True, timeout=300)
