"""The three stages: each combines a model with its training data, test data and metrics."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import ovformer.modeling  # noqa: F401  (registers the models)
from ovformer.d2 import CfgNode, DatasetEvaluator, MetadataCatalog
from ovformer.data.loading.loaders import build_test_loader, build_train_loader
from ovformer.data.loading.video_loaders import build_video_test_loader, build_video_train_loader
from ovformer.data.samples.clip_augmentation import find_clip_input_errors
from ovformer.data.samples.image_mapper import find_image_input_errors
from ovformer.evaluation.lvis_evaluator import LvisEvaluator
from ovformer.evaluation.video_evaluator import VideoEvaluator


@dataclass(frozen=True)
class Stage:
    """One training script.

    Attributes:
        script: file name of the training script.
        meta_architecture: the model that it runs.
        build_train_loader: (cfg, start_iteration) -> endless iterator over this process's part of
            each batch.
        build_test_loader: (cfg, name of a data set) -> iterator over this process's part of it.
            Where the stage can resume, it also takes ``skip``, the ids of finished videos.
        evaluators: ``evaluator_type`` of a data set -> function (name of the data set, folder) that
            returns an evaluator, which scores the set and writes ``results.json`` into the folder.
        input_errors: cfg -> messages about invalid keys of the training's augmentation.
        can_resume: whether evaluators take ``resume`` and list the ids of ``finished`` videos.
    """

    script: str
    meta_architecture: str
    build_train_loader: Callable[[CfgNode, int], Iterable[list[dict]]]
    build_test_loader: Callable[..., Iterable[list[dict]]]
    evaluators: dict[str, Callable[..., DatasetEvaluator]]
    input_errors: Callable[[CfgNode], Iterable[str]]
    can_resume: bool = False

    def build_evaluator(self, dataset_name: str, folder: Path, resume: bool) -> DatasetEvaluator:
        """Return the evaluator of a data set.

        Args:
            dataset_name: one of ``DATASETS.TEST``.
            folder: of its results.
            resume: continue an interrupted evaluation, in a stage that can.

        Raises:
            ValueError: this stage can't score it.
        """
        options = {"resume": resume} if self.can_resume else {}
        return self.evaluators[self.evaluator_type(dataset_name)](dataset_name, folder, **options)

    def evaluator_type(self, dataset_name: str) -> str:
        """Return the metric of a data set, or raise ValueError if this stage lacks it."""
        name = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if name not in self.evaluators:
            raise ValueError(
                f"DATASETS.TEST: {dataset_name!r} has the metric {name!r}, which "
                f"{self.script} can't compute. It can: {', '.join(self.evaluators)}."
            )
        return name


IMAGE = Stage(
    script="train_net.py",
    meta_architecture="OVFormer",
    build_train_loader=build_train_loader,
    build_test_loader=build_test_loader,
    evaluators={"lvis": LvisEvaluator},
    input_errors=find_image_input_errors,
)
FRAMES = Stage(
    script="train_net_video.py",
    meta_architecture="OVFormerVideo",
    build_train_loader=build_video_train_loader,
    build_test_loader=build_video_test_loader,
    evaluators={"vis": VideoEvaluator, "burst": VideoEvaluator},
    input_errors=find_clip_input_errors,
    can_resume=True,
)
CLIPS = replace(FRAMES, script="train_net_lvvis.py", meta_architecture="VideoOVFormer")
STAGES = (IMAGE, FRAMES, CLIPS)
