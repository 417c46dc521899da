"""Recipes, one module each: `config(data) -> Config`. The docstring has command, cost and expected accuracy."""
