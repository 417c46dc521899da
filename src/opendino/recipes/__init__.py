"""Full runs, one file each: `config(data) -> Config`, with a docstring that says command, hours, machine and figure."""
