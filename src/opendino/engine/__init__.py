"""Everything that turns a method into a training run: optimizer, precision, checkpoints, monitoring, metrics."""
