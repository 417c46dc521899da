"""Messages of the command line in the words of the page: a flag becomes the field of the tab Train that sets it."""

from __future__ import annotations

import re

FOLDERS, STACK, RECIPE, MINUTES = "Sub-folders are", "Pages of a file are", "Recipe", "Number of minutes"
"""Labels of fields of the tab Train."""
FOLDER_CHOICES = {"Not said": "auto", "Classes": "folders", "Dates, batches or other": "none"}
"""What sub-folders can be, and the value of --labels."""

_FIELDS = {"--stack": f"“{STACK}”:", "--recipe": f"“{RECIPE}”:", "--minutes": f"“{MINUTES}”"}
_FIELDS |= {f"--labels {value}": f"“{FOLDERS}: {name}”" for name, value in FOLDER_CHOICES.items() if value != "auto"}
_ADVICE = re.compile(r" \((?:see )?--[^()]*\)")
_ON_THE_COMMAND_LINE = " (Names with -- are settings of the command line, see below.)"
LONGER = (
    f"Train longer: a larger “{MINUTES}”. Look at the examples in the tab Images: a border, a watermark or one color "
    "in all parts of an image can be learned instead of what it shows. Network and learning rate are settings of the "
    "command line, see below."
)
"""The page's advice for a training that has not learned."""
ELSEWHERE = "The settings that help are those of the command line, see below."
"""The page's advice for a training that has collapsed."""


def with_fields(text: str) -> str:
    """A message with the page's fields instead of the flags that set the same."""
    for flag, field in _FIELDS.items():
        text = text.replace(flag, field)
    return text


def in_page_words(text: str) -> str:
    """A message of a training: `with_fields`, and of other flags it says where they are set."""
    text = _ADVICE.sub("", with_fields(text))
    return text + _ON_THE_COMMAND_LINE * bool(re.search(r"(?<![\w-])--[a-z]", text))
