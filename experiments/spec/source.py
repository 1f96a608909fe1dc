"""YAML files that say where in them an error lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from experiments.errors import FileError

Model = TypeVar("Model", bound=BaseModel)
Location = Sequence[str | int]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Source:
    """The content of a YAML file, and the line of each of its values."""

    def __init__(self, path: Path):
        """
        Raises:
            FileError: the file cannot be read, is no YAML, or names a key twice.
        """
        self.path = path
        self._lines: dict[tuple[str | int, ...], int] = {}
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=_Loader)
            self.content: Any = yaml.load(text, Loader=_Loader)
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{path} cannot be read: {error}") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            raise FileError(f"{where}: {getattr(error, 'problem', error)}") from error
        if not isinstance(root, yaml.MappingNode):
            raise FileError(f"{path}:1: expected keys with values")
        self._index(root, ())

    def _index(self, node: yaml.Node, location: tuple[str | int, ...]) -> None:
        self._lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else str(key)
                line = key.start_mark.line + 1
                if name in seen:
                    raise FileError(f"{self.path}:{line}: {name!r} is there twice")
                seen.add(name)
                inside = (*location, name)
                self._lines[inside] = line
                self._index(value, inside)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._index(value, (*location, index))

    def error(self, message: str, location: Location = ()) -> FileError:
        """An error whose message begins with the file and the line of ``location``."""
        return FileError(f"{self.path}:{self.line(location)}: {message}")

    def line(self, location: Location) -> int:
        """Line of a value, counted from 1; of what encloses it where it is not in the file."""
        # pydantic's locations also name the alternatives of a union, which are not in the file.
        found: tuple[str | int, ...] = ()
        for part in location:
            key = part if isinstance(part, int) else str(part)
            inside = (*found, key)
            found = inside if inside in self._lines else found
        return self._lines[found]

    def validate(self, model: type[Model], content: Any, at: Location = ()) -> Model:
        """Check ``content`` and turn it into ``model``.

        Args:
            model: what it must be.
            content: all of the file's content, or part of it.
            at: where in the file errors are looked for first.

        Raises:
            FileError: the first thing that is wrong, with the right keys where a key is.
        """
        try:
            return model.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            location = tuple(first["loc"])
            if first["type"] == "extra_forbidden":
                known = ", ".join(sorted(model.model_fields))
                message = f"no such key: {location[-1]!r}; the keys are {known}"
            elif first["type"] == "missing":
                message = f"the key {location[-1]!r} is missing"
            else:
                message = f"{'.'.join(map(str, location))}: {first['msg']}"
                if not isinstance(first["input"], dict):
                    message += f", got {first['input']!r}"
            inside = (*at, *location)
            raise self.error(message, inside if self._holds(inside) else location) from error

    def _holds(self, location: Location) -> bool:
        return tuple(location) in self._lines
