"""A YAML loader that rejects duplicate keys; PyYAML silently uses the last value."""

from __future__ import annotations

from typing import Any

import yaml

from opendino.core.errors import UsageError
from opendino.core.ranges import shown


class UniqueKeyLoader(yaml.SafeLoader):
    """As `yaml.SafeLoader`, but a key that is there twice raises `UsageError`."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; raises `UsageError` if a key is there twice."""
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                where = f"line {line}" if line == lines[key.value] else f"lines {lines[key.value]} and {line}"
                raise UsageError(
                    f"{key.start_mark.name} has the key {shown(key.value)} twice, in {where}", "Keep one of them"
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)
