"""Every kind of place images come from, one file each: `matches(data)` and `build(data)`."""
