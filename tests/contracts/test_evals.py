"""Every evaluation is one documented file with functions of its own."""

from __future__ import annotations

import inspect

import pytest

from opendino.core import registry

PACKAGE = "opendino.evals"
NAMES = registry.names(PACKAGE)


def test_the_two_shown_while_training_are_there() -> None:
    assert {"knn", "label_free"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_imports_and_every_public_function_says_what_it_does(name: str) -> None:
    module = registry.load(PACKAGE, name)
    assert (module.__doc__ or "").strip()
    public = [
        value
        for key, value in vars(module).items()
        if key[0] != "_" and inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    assert public
    assert all(inspect.getdoc(function) for function in public)
