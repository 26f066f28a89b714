"""Write the recorded files of this folder again, by the code of a checkout. See README.md.

    python tests/reference/release_0_1_0/record.py FOLDER

It needs a checkout of that release, whose code it runs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save_file

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
LAST = "model_0000599.pth"
CLASSIFIER = "datasets/shapes/text_classifier.safetensors"
CLIP = "datasets/shapes/clip"
FRAMES = "datasets/shapes/video_val/000001"
# What draws the data set, and evaluates on it.
DRAW = ["tools/make_shapes.py", "--output", "datasets/shapes", "--size", "64", "--seed", "2113"]
DRAW += ["--train-images", "4", "--val-images", "1"]
DRAW += ["--train-videos", "1", "--val-videos", "0", "--frames", "1"]
RESUME = ["train_net.py", "--config-file", "run/config.yaml", "--resume", "DATASETS.TEST", "()"]
EVALUATE = {
    "image": ["train_net.py", "--config-file", "run/config.yaml", "--eval-only"],
    "video": ["train_net_video.py", "--config-file", "run/config.yaml", "--eval-only"],
}
EVALUATE["image"] += ["MODEL.WEIGHTS", f"run/{LAST}", "OUTPUT_DIR", "image"]
EVALUATE["video"] += ["MODEL.WEIGHTS", f"run/{LAST}", "OUTPUT_DIR", "video"]
EVALUATE["video"] += ["MODEL.META_ARCHITECTURE", "OVFormerVideo"]
EVALUATE["video"] += ["DATASETS.TRAIN", "('shapes_video_train',)"]
EVALUATE["video"] += ["DATASETS.TEST", "('shapes_video_val',)"]
DATASETS = {"image": "shapes_train", "video": "shapes_video_val"}


def command(folder: Path, words: list[str]) -> tuple[list[str], dict]:
    """A script's command line, and the options of subprocess that it is started with."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    env["DETECTRON2_DATASETS"] = "datasets"
    options = {"cwd": folder, "env": env, "stdin": subprocess.DEVNULL, "text": True}
    return [sys.executable, str(ROOT / words[0]), *words[1:]], options


def run(folder: Path, words: list[str]) -> str:
    """Run a script in a folder and return what it prints."""
    line, options = command(folder, words)
    done = subprocess.run(line, capture_output=True, timeout=300, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def write_clip(folder: Path) -> None:
    """Write a tiny CLIP model whose weights NumPy draws, which are the same everywhere."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
    }
    state = open_clip.CLIP(**config).state_dict()
    for name, value in state.items():
        if value.dim() >= 2:
            random = np.random.RandomState(zlib.crc32(name.encode()))
            draws = random.standard_normal(tuple(value.shape)) / value.shape[-1] ** 0.5
            # The words of a text have to make a difference to its end, which is what CLIP takes.
            if name.startswith("transformer") and "attn" in name:
                draws *= 2 if "in_proj" in name else 8
            elif name.endswith("positional_embedding"):
                draws *= 0.3
            state[name] = torch.from_numpy(draws.astype(np.float32))
        elif name != "logit_scale":
            state[name] = torch.full(value.shape, float(name.endswith("weight")))
    folder.mkdir(parents=True)
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))


def make_videos(shapes: Path) -> None:
    """Write a video of each training image: it, its mirror image, and it again.

    The tiny model knows these images by heart, so that there is something to score.
    """
    images = json.loads((shapes / "shapes_train_norare.json").read_text())
    videos, tracks = [], []
    for image in images["images"]:
        number = image["id"]
        names = [f"{number:06d}/{t:05d}.png" for t in range(3)]
        (shapes / "video_val" / names[0]).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(shapes / "train" / f"{number:06d}.png"))
        for name, shown in zip(names, (pixels, pixels[:, ::-1], pixels), strict=True):
            Image.fromarray(shown).save(shapes / "video_val" / name)
        size = {"width": image["width"], "height": image["height"]}
        videos.append({"id": number, **size, "length": 3, "file_names": names})
    for item in images["annotations"]:
        rle = item["segmentation"]
        mirrored = coco_mask.encode(np.asfortranarray(coco_mask.decode(rle)[:, ::-1]))
        mirrored = {"size": rle["size"], "counts": mirrored["counts"].decode()}
        track = {"id": item["id"], "video_id": item["image_id"], "iscrowd": 0}
        track["category_id"] = item["category_id"]
        tracks.append({**track, "segmentations": [rle, mirrored, rle]})
    content = {"videos": videos, "annotations": tracks, "categories": images["categories"]}
    (shapes / "shapes_video_val.json").write_text(json.dumps(content))


def prepare(folder: Path) -> None:
    """Draw the data set and write the CLIP model."""
    run(folder, DRAW)
    make_videos(folder / "datasets/shapes")
    write_clip(folder / CLIP)


def describe_weights(path: Path) -> dict[str, list[float]]:
    """For each entry of a checkpoint's weights its norm, and its product with random numbers.

    These have the norm 1, so that an error of the product is at most that of the weights.
    """
    weights = torch.load(path, map_location="cpu", weights_only=True)["model"]
    values = {}
    for name, weight in weights.items():
        flat = weight.double().flatten().numpy()
        draws = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(len(flat))
        product = float(flat @ draws) / float(np.linalg.norm(draws))
        values[name] = [float(f"{x:.7g}") for x in (np.linalg.norm(flat), product)]
    return values


def after_checkpoint(metrics: Path) -> list[dict]:
    """The lines of metrics.json after the recorded checkpoint, without times and memory."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    kept = [line for line in lines if line["iteration"] > 599]
    odd = ("time", "mem", "rss", "eta")
    return [{k: v for k, v in line.items() if not any(o in k for o in odd)} for line in kept]


def find_objects() -> dict:
    """What VideoPredictor finds in a video of the data set.

    The working directory has to be a folder that was prepared and has the run: the checkpoint names
    the CLIP model relative to it.
    """
    from ovformer.predictor import VideoPredictor

    predictor = VideoPredictor.from_checkpoint(None, Path("run", LAST), device="cpu")
    names = list(predictor.names)
    found = {"checkpoint": predictor.predict(FRAMES).objects}
    # New words are embedded by the CLIP model and the prompts that the checkpoint names.
    predictor.set_vocabulary(["red circle", "something else"])
    found["words"] = predictor.predict(FRAMES, max_objects=4).objects
    fields = ("track_id", "label", "name", "score", "segmentations")
    objects = {k: [{f: getattr(o, f) for f in fields} for o in v] for k, v in found.items()}
    return {"names": names, **objects}


def record(folder: Path) -> None:
    """Train, stop, resume, evaluate and predict, and keep what belongs into this folder."""
    work = folder / "work"
    work.mkdir(parents=True)
    prepare(work)
    words = ["tools/build_text_classifier.py", "--vocabulary", "datasets/shapes/shapes_val.json"]
    words += ["--templates", "a {}", "the {}", "--clip", f"local-dir:{CLIP}", "--pretrained", ""]
    run(work, [*words, "--output", CLASSIFIER])
    shutil.copy(HERE / "image.yaml", work)
    line, options = command(work, ["train_net.py", "--config-file", "image.yaml"])
    with open(work / "output.txt", "w") as output:
        training = subprocess.Popen(line, stdout=output, stderr=output, **options)
        while not (work / "run" / "last_checkpoint").exists() and training.poll() is None:
            time.sleep(0.001)
        training.send_signal(signal.SIGKILL)
        training.wait()
    assert (work / "run" / "last_checkpoint").read_text() == LAST
    kept = folder / "recorded"
    (kept / "run").mkdir(parents=True)
    for name in ("config.yaml", "last_checkpoint", "metrics.json", LAST):
        shutil.copy(work / "run" / name, kept / "run")
    shutil.copy(work / CLASSIFIER, kept)
    for kind, words in EVALUATE.items():
        run(work, words)
        (kept / kind).mkdir()
        for name in ("results.json", "scores.json"):
            shutil.copy(work / kind / "inference" / DATASETS[kind] / name, kept / kind)
    shutil.copy(work / "datasets/shapes/shapes_train_norare.json", kept / "image/truth.json")
    shutil.copy(work / "datasets/shapes/shapes_video_val.json", kept / "video/truth.json")
    words = ["mAP.py", "--et", "shapes_video_val", "--dt", str(kept / "video/results.json")]
    table = run(work, [*words, "--gt", str(kept / "video/truth.json"), "--out", "map"])
    (kept / "video/table.txt").write_text("\n".join(table.splitlines()[1:-1]) + "\n")
    before = Path.cwd()
    os.chdir(work)
    (kept / "objects.json").write_text(json.dumps(find_objects()) + "\n")
    os.chdir(before)
    run(work, RESUME)
    resumed = {
        "metrics": after_checkpoint(work / "run/metrics.json"),
        "weights": describe_weights(work / "run/model_final.pth"),
    }
    (kept / "resumed.json").write_text(json.dumps(resumed, indent=0) + "\n")


if __name__ == "__main__":
    record(Path(sys.argv[1]).resolve())
