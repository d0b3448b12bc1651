"""Where training examples come from: sources, transforms and the pipeline that feeds a training step."""
