"""One way to judge features a file."""
