"""Engine: the command line, training, evaluation and checkpoints of all stages."""
