"""PyYAML's safe loader with two of its traps closed. Imported only where a YAML file is read."""

from __future__ import annotations

import re

import yaml


class Loader(yaml.SafeLoader):
    """A key that is given twice is an error; 1e-3 is a number, as in YAML 1.2 and JSON, not a text."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
