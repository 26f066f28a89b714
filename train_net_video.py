#!/usr/bin/env python
"""Evaluate OVFormer on videos, frame by frame (OVFormerVideo), with detectron2's command line.

    python train_net_video.py --config-file configs/youtubevis_2019/ovformer_R50_bs8.yaml \
        --eval-only MODEL.WEIGHTS models/ovformer_r50_lvis.pth
    python train_net_video.py ... --eval-only --resume     continue after the last finished video
    python train_net_video.py --num-gpus 4 ... --eval-only share the videos among 4 GPUs
    python train_net_video.py ...                          train on DATASETS.TRAIN

Files appear in OUTPUT_DIR/inference/<data set>: results.json, and scores.{json,csv} where the data
set has labels; where it has none, tools/ytvis_json.py packs results.json for the server. mAP.py
scores a results.json again. Training writes what train_net.py writes.
"""

from ovformer.engine.stages import FRAMES
from ovformer.run import main

if __name__ == "__main__":
    main(FRAMES)
