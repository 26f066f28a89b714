"""Several training sets: one vocabulary, and the share of each."""

import itertools
import json
import logging
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import CfgNode, DatasetCatalog, MetadataCatalog, TrainingSampler, comm
from ovformer.data.catalog.custom import register_custom
from ovformer.data.catalog.dataset_spec import load_categories
from ovformer.data.loading.loaders import build_train_loader
from ovformer.data.loading.training_sets import RatioSampler, build_sampler, load_training_sets
from support.mini_lvis import MiniLvis
from support.mini_videos import MiniVideos


def config(*names: str, **options: object) -> CfgNode:
    pairs = {"DATASETS.TRAIN": names, "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False}
    pairs |= {key.replace("__", "."): value for key, value in options.items()}
    return get_ovformer_cfg(None, [*itertools.chain(*pairs.items())])


@pytest.fixture
def coco(mini_lvis: MiniLvis):
    """The images of ``mini_lvis`` with other categories, as "coco_like"."""

    def register(names: dict[int, str]) -> str:
        categories = [{"id": number, "name": name} for number, name in names.items()]
        path = mini_lvis.root / "coco_like.json"
        path.write_text(json.dumps({**mini_lvis.content, "categories": categories}))
        load_categories.cache_clear()
        files = {"annotations": str(path), "images": str(mini_lvis.root / "coco")}
        register_custom([{"name": "coco_like", **files}])
        return "coco_like"

    yield register
    DatasetCatalog.remove("coco_like")
    MetadataCatalog.remove("coco_like")


def labels(records: list[dict]) -> dict[int, list[int]]:
    return {r["image_id"]: [a["category_id"] for a in r["annotations"]] for r in records}


def test_sets_of_one_vocabulary_stay_as_they_are(mini_lvis: MiniLvis) -> None:
    cfg = config("lvis_v1_train", "lvis_v1_train_norare")
    first, second = load_training_sets(cfg)
    assert labels(first) == labels(second) and sum(map(len, labels(first).values())) == 7


def test_classes_of_another_set_are_found_by_name(
    mini_lvis: MiniLvis, coco, caplog: pytest.LogCaptureFixture
) -> None:
    # Image 1 has categories 1 and 13, 2 has 3, 3 has 3 and 14, 4 has 1 (a crowd) and 3, 5 none.
    name = coco({1: "Aerosol can", 3: "unheard-of", 13: "applesauce", 14: "APRICOT"})
    with caplog.at_level(logging.INFO, "ovformer"):
        first, other = load_training_sets(config("lvis_v1_train", name))
    assert len(first) == 5
    # "applesauce" and "apricot" are novel in LVIS. Images 2 and 3 lost all they had, 5 had nothing.
    assert labels(other) == {1: [0], 4: [0], 5: []}
    assert (
        "coco_like: 1 of its 4 classes are trained classes of lvis_v1_train; of 7 annotations 2 "
        "are kept, of 5 images or videos 3"
    ) in caplog.text
    assert labels(DatasetCatalog.get(name))[2] == [1]  # the data set itself stays as it was


def test_videos_get_the_classes_of_other_videos(mini_videos: MiniVideos) -> None:
    """YouTube-VIS 2021 has some of the names of 2019, under other ids; masks stay with their id."""
    theirs, ours = ([c["name"] for c in load_categories(f"ytvis_{n}")] for n in (2021, 2019))
    path = mini_videos.root / "ytvis_2021"
    path.symlink_to(mini_videos.root / "ytvis_2019")
    categories = [{"id": c["id"], "name": c["name"]} for c in load_categories("ytvis_2021")]
    content = {**mini_videos.content, "categories": categories}
    (path / "train.json").write_text(json.dumps(content))

    def read(records: list[dict], names: list[str]) -> dict:
        """The id and name of each annotation that both sets know, of each frame."""
        return {
            (record["video_id"], t, a["id"], names[a["category_id"]].replace("_", " "))
            for record in records
            for t, annotations in enumerate(record["annotations"])
            for a in annotations
            if names[a["category_id"]].replace("_", " ") in ours
        }

    before = read(DatasetCatalog.get("ytvis_2021_train"), theirs)
    _, after = load_training_sets(config("ytvis_2019_train", "ytvis_2021_train"))
    assert read(after, ours) == before and before


def test_nothing_in_common_is_an_error(mini_lvis: MiniLvis, coco) -> None:
    name = coco({1: "a", 3: "b", 13: "applesauce", 14: "d"})
    with pytest.raises(ValueError, match="no annotation of 'coco_like' is of a class that 'lvis_v"):
        load_training_sets(config("lvis_v1_train", name))


def test_a_set_without_names_is_an_error(mini_lvis: MiniLvis) -> None:
    DatasetCatalog.register("nameless", lambda: DatasetCatalog.get("lvis_v1_train"))
    try:
        with pytest.raises(ValueError, match="'nameless' has no class names to compare"):
            load_training_sets(config("lvis_v1_train", "nameless"))
    finally:
        DatasetCatalog.remove("nameless")


def test_videos_are_not_for_the_training_on_images(mini_videos: MiniVideos) -> None:
    with pytest.raises(ValueError, match="'ytvis_2019_train' is a data set of videos; train"):
        build_train_loader(config("ytvis_2019_train"))


def factors_of(tracks: list[set[int]], **options: object) -> list[float]:
    """Repeat factors of videos with these categories, each in two frames, one of them twice."""
    videos = [
        {
            "file_names": ["a", "b"],
            "annotations": [[{"category_id": c} for c in sorted(cs)] * 2] * 2,
        }
        for cs in tracks
    ]
    cfg = config("x", DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler", **options)
    sampler = build_sampler(cfg, [videos], seed=3)
    drawn = Counter(itertools.islice(sampler, 40000))
    return [drawn[i] / drawn[len(videos) - 1] for i in range(len(videos))]


def test_a_video_is_repeated_by_its_rarest_category() -> None:
    # Category 0 is in 8 of 8 videos, 1 in 2, 2 in 1, however often in a video: with a threshold of
    # 0.5 their factors are 1, sqrt(0.5 / 0.25) and sqrt(0.5 / 0.125).
    tracks = [{0, 1}, {0, 1, 2}, *[{0}] * 6]
    found = factors_of(tracks, DATALOADER__REPEAT_THRESHOLD=0.5)
    assert found == pytest.approx([2**0.5, 2.0, *[1.0] * 6], rel=0.05)
    found = factors_of(tracks, DATALOADER__REPEAT_THRESHOLD=0.5, DATALOADER__REPEAT_SQRT=False)
    assert found == pytest.approx([2.0, 4.0, *[1.0] * 6], rel=0.05)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 2**31 - 1),
    world_size=st.integers(1, 4),
)
def test_processes_share_one_stream(sizes: list[int], seed: int, world_size: int) -> None:
    ratios = [1.0 + n for n in range(len(sizes))]

    def part(rank: int, world_size: int) -> list[int]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comm, "get_rank", lambda: rank)
            patch.setattr(comm, "get_world_size", lambda: world_size)
            samplers = [TrainingSampler(size, seed=seed) for size in sizes]
            sampler = RatioSampler(samplers, sizes, ratios, seed)
        return list(itertools.islice(sampler, 60))

    stream = part(0, 1)
    for rank in range(world_size):
        expected = stream[rank::world_size]
        assert part(rank, world_size)[: len(expected)] == expected
    assert set(stream) <= set(range(sum(sizes)))


def test_each_set_gets_its_share_and_each_record_its_turn() -> None:
    sets = [[{"annotations": []}] * size for size in (100, 5)]
    cfg = config("a", "b", DATASETS__DATASET_RATIO=[1, 3])
    drawn = list(itertools.islice(build_sampler(cfg, sets, seed=1), 4000))
    second = [index - 100 for index in drawn if index >= 100]
    assert len(second) / len(drawn) == pytest.approx(0.75, abs=0.03)
    for start in range(0, len(second) - 5, 5):  # each pass shows each record once
        assert sorted(second[start : start + 5]) == [0, 1, 2, 3, 4]
    by_size = config("a", "b")
    drawn = list(itertools.islice(build_sampler(by_size, sets, seed=1), 105))
    assert sorted(drawn) == list(range(105))


@pytest.mark.parametrize("ratios", [[1], [1, 0], [1, -1], [1, "half"], [1, 1, 1]])
def test_ratios_that_do_not_fit(ratios: list) -> None:
    cfg = config("a", "b", DATASETS__DATASET_RATIO=ratios)
    with pytest.raises(ValueError, match="DATASET_RATIO: expected a number above 0 for each"):
        build_sampler(cfg, [[], []], seed=1)
