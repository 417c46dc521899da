"""One file format per module: `recognizes` and `read`, or `Config` and `write`, or both."""
