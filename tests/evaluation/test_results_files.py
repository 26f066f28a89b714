import json
from pathlib import Path

import pytest

from ovformer.evaluation import results_reader
from ovformer.evaluation.results_reader import ResultsChecker, find_results, read_results
from ovformer.evaluation.results_writer import (
    ResultsWriter,
    merge_results,
    remove_parts,
    to_results,
)


def entry(video_id: int = 1, score: float = 0.5) -> dict:
    tube = [{"size": [3, 4], "counts": 'a\\"]},{['}, None]
    return {"video_id": video_id, "score": score, "category_id": 2, "segmentations": tube}


def write_results(path: Path, *video_ids: int) -> Path:
    """Write a prediction for each video, and return the part file."""
    writer = ResultsWriter(path)
    for video_id in video_ids:
        writer.add(video_id, [entry(video_id)])
    writer.close()
    return path.with_name("results.json.part0")


def read_videos(path: Path) -> list[int]:
    merge_results(path)
    return [e["video_id"] for e in read_results(path)]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 22])
def test_reads_what_was_written_or_says_that_it_is_cut_off(tmp_path, monkeypatch, chunk) -> None:
    monkeypatch.setattr(results_reader, "_CHUNK", chunk)
    path = tmp_path / "results.json"
    for expected in ([], [entry(1)], [entry(i) for i in range(5)]):
        for indent in (None, 2):
            path.write_text(json.dumps(expected, indent=indent) + "\n")
            assert list(read_results(path)) == expected
    text = json.dumps([entry(1), entry(2)])
    for length in range(1, len(text), 3):
        path.write_text(text[:length])
        with pytest.raises(ValueError, match=r"results.json: prediction \d is cut off"):
            list(read_results(path))


def test_other_files_are_an_error(tmp_path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(FileNotFoundError, match="results.json not found"):
        list(read_results(path))
    for text, message in {
        "": "expected a JSON list",
        '{"annotations": []}': "expected a JSON list",
        "[] []": "results.json: .* 0 predictions",
        '[{"video_id": 1, "score": 1, "category_id": 1}]': "prediction 0 has to be an object",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            list(read_results(path))


def test_finds_results_of_a_run(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="No results of burst_val"):
        find_results(tmp_path, "burst_val")
    published = tmp_path / "inference" / "results.json"
    own = tmp_path / "inference" / "burst_val" / "results.json"
    for path in (published, own):  # where both exist, the one of the data set
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[]")
        assert find_results(tmp_path, "burst_val") == path
    assert find_results(tmp_path / "inference", "burst_val") == own
    assert find_results(own.parent, "burst_val") == own
    assert find_results(published, "burst_val") == published


def test_writer_keeps_finished_videos(tmp_path: Path) -> None:
    path = tmp_path / "inference" / "results.json"
    writer = ResultsWriter(path)
    writer.add(3, [entry(3), entry(3, 0.1)])
    writer.add(4, [])
    writer.close()
    with path.with_name("results.json.part0").open("a") as file:
        file.write('[5, [{"video_id"')  # a crash while writing

    resumed = ResultsWriter(path, resume=True)
    other = ResultsWriter(path, rank=1, resume=True)
    assert resumed.finished == other.finished == {3, 4}
    resumed.add(5, [entry(5)])
    other.add(6, [entry(6)])
    other.add(3, [entry(3, 0.9)])  # samplers may give a video twice
    resumed.close()
    other.close()
    merge_results(path)
    remove_parts(path)
    found = [(e["video_id"], e["score"]) for e in read_results(path)]
    assert found == [(3, 0.5), (3, 0.1), (5, 0.5), (6, 0.5)]
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_what_is_damaged_counts_as_not_written(tmp_path: Path, caplog) -> None:
    path = tmp_path / "results.json"
    part = write_results(path, 3, 4, 5)
    first, second, third = part.read_bytes().splitlines(keepends=True)
    middle = len(second) // 2
    for damaged in (
        second[:middle] + bytes([second[middle] ^ 1]) + second[middle + 1 :],
        second[:middle] + bytes(len(second) - middle),  # as after a power cut; no line break
        b"\n",
        b"\xff\xfe\n",
    ):
        part.write_bytes(first + damaged + third)
        caplog.clear()
        resumed = ResultsWriter(path, resume=True)
        assert resumed.finished <= {3, 5} and 3 in resumed.finished
        assert f"{part}: line 2 is cut off or damaged" in caplog.text
        resumed.add(4, [entry(4)])
        resumed.close()
        assert set(read_videos(path)) == resumed.finished


@pytest.mark.parametrize("rank", [0, 1])
def test_a_line_without_its_end_counts_as_not_written(tmp_path: Path, rank: int) -> None:
    """For all processes, whether they go on with that file or not."""
    path = tmp_path / "results.json"
    part = write_results(path, 3, 4)
    part.write_bytes(part.read_bytes()[:-1])
    resumed = ResultsWriter(path, rank, resume=True)
    assert resumed.finished == {3}
    resumed.close()
    assert read_videos(path) == [3]


def test_writer_starts_anew_without_resume(tmp_path) -> None:
    path = tmp_path / "results.json"
    write_results(path, 3)
    write_results(path)
    assert read_videos(path) == []


def test_results_of_a_prediction() -> None:
    prediction = {
        "video_id": 7,
        "image_size": (3, 4),
        "pred_scores": [0.75, 0.5],
        "pred_labels": [1, 0],
        "segmentations": [[{"size": (3, 4), "counts": b"ab"}], [{"size": [3, 4], "counts": "c"}]],
    }
    found = [
        (e["video_id"], e["score"], e["category_id"], e["segmentations"])
        for e in json.loads(json.dumps(to_results(prediction, [10, 20])))
    ]
    assert found == [
        (7, 0.75, 20, [{"size": [3, 4], "counts": "ab"}]),
        (7, 0.5, 10, [{"size": [3, 4], "counts": "c"}]),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": 900}, r"video 900, which the ground truth does not have \(8 videos, ids 3"),
        ({"category_id": 2}, r"category_id 2, .* \(4 categories, ids 1 to 7\)"),
        ({"score": float("nan")}, "score nan; expected a finite number"),
        ({"score": None}, "score None"),
        ({"segmentations": []}, "has 0 segmentations, but the video has 5 frames"),
        ({"segmentations": None}, "has the segmentations None; expected a list"),
        ({"segmentations": [[[1, 1, 2, 2, 3, 3]]] * 5}, "not a compressed COCO RLE"),
        (
            {"segmentations": [{"size": [64, 48], "counts": "PP3"}] * 5},
            r"size \[64, 48\] .* but the video has 48 x 64 pixels",
        ),
        ({"segmentations": [{"size": [48, 64], "counts": "PP1"}] * 5}, "does not cover a frame"),
    ],
)
def test_foreign_and_damaged_predictions_are_errors(
    make_video_set, load_truth, change, message
) -> None:
    truth, (prediction, *_) = make_video_set(1)
    checker = ResultsChecker(load_truth(truth))
    checker.check(prediction["video_id"], [prediction])
    changed = {**prediction, **change}
    with pytest.raises(ValueError, match=message):
        checker.check(changed["video_id"], [changed])
