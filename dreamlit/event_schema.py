"""The JSON Schema of what a run tells, read off the dataclasses in `dreamlit.events`."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from dreamlit.events import KINDS, LEVELS, VERSION, Image


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one record, read off the dataclasses; `docs/events.md` holds it."""
    data = {kind: {"$ref": f"#/$defs/{event.__name__}"} for kind, event in KINDS.items()}
    fields = {
        "version": {"const": VERSION},
        "run": {"type": "string"},
        "fit": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "number": {"type": "integer", "minimum": 0},
        "time": {"type": "string", "format": "date-time"},
        "event": {"enum": list(KINDS)},
        "level": {"enum": list(LEVELS)},
        "data": {"type": "object"},
    }
    dropped = {"type": "integer", "minimum": 1}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {**fields, "dropped": dropped},
        "required": list(fields),
        "oneOf": [{"properties": {"event": {"const": kind}, "data": ref}} for kind, ref in data.items()],
        "$defs": {each.__name__: object_schema(each) for each in (*KINDS.values(), Image)},
    }


def object_schema(record: type) -> dict[str, Any]:
    hints = typing.get_type_hints(record)
    names = [field.name for field in dataclasses.fields(record)]
    return {"type": "object", "properties": {name: type_schema(hints[name]) for name in names}, "required": names}


def type_schema(hint: Any) -> dict[str, Any]:
    simple = {int: "integer", float: "number", str: "string", bool: "boolean"}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in simple:
        return {"type": simple[hint]}
    if dataclasses.is_dataclass(hint):
        return {"$ref": f"#/$defs/{getattr(hint, '__name__', '')}"}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (typing.Union, types.UnionType):
        kinds = [type_schema(arg)["type"] for arg in args if arg is not type(None)]
        return {"type": [*kinds, "null"]}
    if origin is tuple:
        return {"type": "array", "items": type_schema(args[0])}
    return {"type": "object", "additionalProperties": type_schema(args[1])}
