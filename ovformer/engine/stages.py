"""What differs between the stages: the data that a model is trained and tested on, the metric."""

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
        build_train_loader: from a config and the number of iterations that are done to endless
            batches, of each of which this process gets its share.
        build_test_loader: from a config and the name of a data set to this process's part of it;
            called with ``skip``, ids that are done, where an evaluator knows such ids.
        evaluators: ``evaluator_type`` of a data set -> from its name and a folder to what scores it
            and writes ``results.json`` into the folder.
        input_errors: from a config to what is wrong with its keys of the training's augmentation.
        can_resume: whether evaluators take ``resume`` and keep ``finished``, ids that are done.
    """

    script: str
    meta_architecture: str
    build_train_loader: Callable[[CfgNode, int], Iterable[list[dict]]]
    build_test_loader: Callable[..., Iterable[list[dict]]]
    evaluators: dict[str, Callable[..., DatasetEvaluator]]
    input_errors: Callable[[CfgNode], Iterable[str]]
    can_resume: bool = False

    def build_evaluator(self, dataset_name: str, folder: Path, resume: bool) -> DatasetEvaluator:
        """Return what scores a data set.

        Args:
            dataset_name: one of ``DATASETS.TEST``.
            folder: where it writes.
            resume: go on with an evaluation that was interrupted, in a stage that can.

        Raises:
            ValueError: this stage can't score it.
        """
        options = {"resume": resume} if self.can_resume else {}
        return self.evaluators[self.evaluator_type(dataset_name)](dataset_name, folder, **options)

    def evaluator_type(self, dataset_name: str) -> str:
        """Return the metric of a data set, or raise ValueError if this stage does not have it."""
        name = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if name not in self.evaluators:
            raise ValueError(
                f"DATASETS.TEST: {dataset_name!r} is scored by {name!r}, which this script can't "
                f"do. It can: {', '.join(self.evaluators)}."
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
