"""What learns and predicts: training, checkpoints, the model file, prediction, and what memory they take."""
