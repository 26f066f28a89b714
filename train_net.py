#!/usr/bin/env python
"""Train and evaluate OVFormer on images (stage 1), with detectron2's command line.

    python train_net.py --num-gpus 4 --config-file configs/lvis/ovformer_R50_bs8.yaml
    python train_net.py ... --resume                                   resume after an interruption
    python train_net.py ... --eval-only MODEL.WEIGHTS model_final.pth  evaluate only
    python train_net.py ... MODEL.DEVICE cpu SOLVER.MAX_ITER 100       KEY VALUE pairs come last

torchrun starts several processes as well, on CPUs too:

    torchrun --nproc-per-node 4 train_net.py --config-file configs/lvis/ovformer_R50_bs8.yaml

Files appear in OUTPUT_DIR: log.txt, config.yaml, metrics.json, TensorBoard events, checkpoints with
last_checkpoint, model_final.pth, and inference/<data set>/{results,scores}.json.

On fewer or smaller GPUs, SOLVER.ACCUMULATION_STEPS keeps the batch, and with it the training, as it
is; SOLVER.REFERENCE_WORLD_SIZE instead scales batch, learning rate and length.
"""

from ovformer.engine.stages import IMAGE
from ovformer.run import main

if __name__ == "__main__":
    main(IMAGE)
