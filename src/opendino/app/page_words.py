"""Messages of the command line in the words of the page: a flag becomes the field of the tab Train that sets it."""

from __future__ import annotations

import re

FOLDERS, STACK, RECIPE, MINUTES = "Sub-folders are", "Pages of a file are", "Recipe", "Number of minutes"
"""Labels of fields of the tab Train."""
FOLDER_CHOICES = {"Not said": "auto", "Classes": "folders", "Dates, batches or other": "none"}
"""What sub-folders can be, and the value of --labels."""

_FIELDS = {"--stack": f"“{STACK}”:", "--recipe": f"“{RECIPE}”:", "--minutes": f"“{MINUTES}”"}
_FIELDS |= {f"--labels {value}": f"“{FOLDERS}: {name}”" for name, value in FOLDER_CHOICES.items() if value != "auto"}
_FLAG = re.compile(r"(?<![\w-])--[a-z]")
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
_TOGETHER = " of `opendino train` on the command line; start this page with that run, which reads them together"


def with_fields(text: str) -> str:
    """A message with the page's fields instead of the flags that set the same."""
    for flag, field in _FIELDS.items():
        text = text.replace(flag, field)
    return text


def of_images(text: str) -> str:
    """A fact about a set of images: `with_fields`; for one file per channel, which has no field, where to go."""
    return with_fields(text) + _TOGETHER * ("--channel-files " in text)


def verdict_words(evidence: str, cure: str) -> str:
    """A verdict on a run, in one line; advice with flags is said to be for the command line."""
    return f"{_ADVICE.sub('', with_fields(evidence))}. {cure_words(cure)}".strip()


def cure_words(cure: str) -> str:
    """Advice, said to be for the command line if it has flags."""
    return "On the command line: " * bool(_FLAG.search(cure)) + cure


def in_page_words(text: str) -> str:
    """A message of a training: `with_fields`, and of other flags it says where they are set."""
    text = _ADVICE.sub("", with_fields(text))
    return text + _ON_THE_COMMAND_LINE * bool(_FLAG.search(text))
