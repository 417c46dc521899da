"""Error messages: hints, exit codes, pickling."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from opendino.core.errors import UsageError, UserError, nearest, unknown
from opendino.engine.interrupt import Interrupted


@pytest.mark.parametrize(("kind", "code"), [(UserError, 1), (UsageError, 2), (Interrupted, 130)])
def test_exit_codes_and_pickling(kind: type[UserError], code: int) -> None:
    error = kind("'x' is wrong", "Use y")
    assert (error.exit_code, str(error)) == (code, "'x' is wrong. Use y")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.message, again.hint, again.exit_code, str(again)) == ("'x' is wrong", "Use y", code, str(error))


def test_uncaught_an_interrupted_run_is_one_message() -> None:
    script = "from opendino.engine.interrupt import Interrupted; raise Interrupted('Stopped', 'Continue with: x')"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "Stopped. Continue with: x\n")
    assert issubclass(Interrupted, Exception)  # callers catch it as any other error


def test_a_hint_is_optional() -> None:
    assert str(UserError("'x' is wrong")) == "'x' is wrong"


def test_the_closest_name_comes_first_then_the_list() -> None:
    assert nearest("grun", ["red", "green", "blue"]) == "Did you mean green? Available: blue, green, red"
    assert nearest("zzz", ["red", "green"]) == "Available: green, red"


def test_a_long_list_is_omitted_if_there_is_a_close_name() -> None:
    many = [f"model{number}" for number in range(100)]
    assert nearest("model7x", many).startswith("Did you mean ")
    assert "Available" not in nearest("model7x", many)
    assert "model99" in nearest("qqq", many)


def test_unknown_has_the_kind_and_the_value() -> None:
    error = unknown("recipe", "smal", ["small", "demo"])
    assert (error.message, error.exit_code) == ("Unknown recipe 'smal'", 2)
    assert error.hint.startswith("Did you mean small?")
