"""What turns a method into a run: optimiser, precision, checkpoints, monitors, meters."""
