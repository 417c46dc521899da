"""What turns a method into a run: optimizer, precision, checkpoints, monitors, meters."""
