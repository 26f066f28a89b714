#!/usr/bin/env python
"""Train and evaluate OVFormer on clips (stage 3, VideoOVFormer), with detectron2's command line.

    python train_net_lvvis.py --num-gpus 4 --config-file configs/lvvis/video_ovformer_R50_bs8.yaml
    python train_net_lvvis.py ... --resume                  continue after an interruption
    python train_net_lvvis.py ... --eval-only MODEL.WEIGHTS models/ovformer_r50_lvvis.pth
    python train_net_lvvis.py ... --eval-only --resume      continue after the last finished video

Training starts from the weights of stage 1 (MODEL.WEIGHTS): the published file, or model_final.pth
of train_net.py, whose number of classes does not matter. It writes what train_net.py writes.
Evaluation writes what train_net_video.py writes: of LV-VIS val the scores (AP, base, novel); of
LV-VIS test, which has no labels, results.json, which tools/ytvis_json.py packs for the server.
"""

from ovformer.engine.stages import CLIPS
from ovformer.run import main

if __name__ == "__main__":
    main(CLIPS)
