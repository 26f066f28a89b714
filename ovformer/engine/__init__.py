"""Engine: training, evaluation and checkpoints of all stages, and starting their processes."""
