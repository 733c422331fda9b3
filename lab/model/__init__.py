"""Models: training, checkpoints, the model file, prediction, and the memory that they take."""
