"""One training method a file: `Config`, `views`, `build`. `ls` is the list."""
