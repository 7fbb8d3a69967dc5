"""Reads the files that other trainers are configured by: JSON, TOML, env files, command lines."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shlex
import sys
from collections.abc import Iterable
from typing import Any

from dreamlit.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

SCRIPT = re.compile(r"(?:[^=]*[/\\])?\w+\.py")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))|%(\w+)%")
OF_WINDOWS = re.compile(r"(?:\^|\s`)[ \t]*\r?\n")
"""How a command goes on in the next line in a batch file, and in PowerShell."""
BETWEEN = r"(?P<gone>(?<=\s)\d?>>?\s*\S+|{comment})|(?:(?<=\s)(?:&&|\|\|?|&)|;)(?=\s|$)"
OF_SHELLS = {
    False: (r"""(?P<kept>"(?:\\[\s\S]|[^"\\])*"|'[^']*'|\\.)|""", r"(?:^|(?<=\s))#.*", r"\\[ \t]*\r?\n"),
    True: (r"""(?P<kept>"[^"\n]*"|'[^'\n]*')|""", r"^[ \t]*(?:#|::|@?(?i:rem)\b).*", r"[\^`][ \t]*\r?\n"),
}
"""Whether it is of Windows -> what is quoted, what is a comment, and how a line goes on."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What a file says."""

    path: pathlib.Path
    options: dict[str, Any]
    """By their names without dashes."""
    script: str = ""
    """Name of the program, where the file is a command line."""
    launcher: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options that stand before the program's name: those of `accelerate launch`."""
    tables: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The tables of a TOML file."""
    env: bool = False
    """Whether it is a file of environment variables; `options` then have their names in lower case."""


def read(path: pathlib.Path) -> Source:
    """A configuration file of another trainer.

    Raises:
        ConfigError: when it is missing, empty, or cannot be read.
    """
    text = read_text(path)
    if path.suffix.lower() == ".toml":
        content = parsed(path, text)
        tables = {key: value for key, value in content.items() if is_table(value)}
        return Source(path, named({k: v for k, v in content.items() if k not in tables}), tables=tables)
    if path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "[")):
        content = parsed(path, text)
        if not isinstance(content, dict):
            raise ConfigError(f"{path} holds no options but a list of datasets; give the configuration, then this")
        return Source(path, named(content))
    found, commands = assigned(path, text)
    for command in commands:
        place = next((n for n, word in enumerate(command) if SCRIPT.fullmatch(word) or word == "simpletuner"), None)
        if place is not None:
            script = pathlib.PureWindowsPath(command[place]).name  # of both kinds of slashes
            return Source(path, of_words(command[place + 1 :]), script, of_words(command[:place]))
    if not found:
        raise ConfigError(f"{path} is neither JSON, TOML, KEY=value lines nor a command with the name of a script")
    return Source(path, {name.lower(): typed(value) for name, value in found.items()}, env=True)


def read_list(path: pathlib.Path) -> list[dict[str, Any]]:
    """A list of datasets in JSON. Errors: `ConfigError`."""
    content = parsed(path, read_text(path))
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        raise ConfigError(f"{path} must hold a list of datasets: [{{...}}, {{...}}]")
    return content


def read_mapping(path: pathlib.Path) -> dict[str, Any]:
    """A mapping in JSON or TOML. Errors: `ConfigError`."""
    content = parsed(path, read_text(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping: {{...}}")
    return content


def find(name: Any, source: pathlib.Path) -> pathlib.Path:
    """A file that a configuration names: from the working folder, beside the configuration, or one folder above it.

    Raises:
        ConfigError: when it is in none of them.
    """
    given = pathlib.Path(str(name)).expanduser()
    for place in (pathlib.Path(), source.parent, source.resolve().parent.parent):
        if (place / given).is_file():
            return place / given
    raise ConfigError(
        f"{source} names {name}, which is neither in the working folder nor beside it; "
        "call the command where the other trainer is started"
    )


def read_text(path: pathlib.Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not text.strip():
        raise ConfigError(f"{path} is empty")
    return text


def parsed(path: pathlib.Path, text: str) -> Any:
    kind = "TOML" if path.suffix.lower() == ".toml" else "JSON"
    try:
        return tomllib.loads(text) if kind == "TOML" else json.loads(text)
    except (ValueError, RecursionError) as error:
        strict = "; JSON has no comments, and no comma behind the last of a list" if kind == "JSON" else ""
        raise ConfigError(f"{path} is not valid {kind}: {error}{strict}") from None


def is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def named(options: dict[str, Any]) -> dict[str, Any]:
    """Options by their names without leading dashes, with underscores."""
    return {str(key).lstrip("-").replace("-", "_"): value for key, value in options.items()}


def assigned(path: pathlib.Path, text: str) -> tuple[dict[str, str], list[list[str]]]:
    """The variables that a shell text sets, and the words of its commands with variables in their place.

    A variable that is set nowhere stays as it is written.
    """
    found: dict[str, str] = {}
    commands: list[list[str]] = []
    windows = path.suffix.lower() in (".bat", ".cmd", ".ps1") or OF_WINDOWS.search(text) is not None
    for number, line in enumerate(shell_lines(text, windows), 1):
        lexer = shlex.shlex(line, posix=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        if windows:
            lexer.escape = ""
        try:
            words = list(lexer)
        except ValueError as error:  # without its text, which may hold a token
            raise ConfigError(f"{path}, about line {number}: it cannot be read as a shell line ({error})") from None
        if windows and len(words) > 2 and words[0].lower() == "set":  # whose value has blanks without quotes
            words = ["set", " ".join(words[1:])]
        while words and (words[0].lower() in ("export", "set") or ASSIGNMENT.fullmatch(words[0])):
            assignment = ASSIGNMENT.fullmatch(words.pop(0))
            if assignment:
                name, before = assignment[1], found.get(assignment[1], "")
                value = expanded(assignment[3], {**found, name: before})
                found[name] = before + value if assignment[2] else value
        words = [expanded(word, found) for word in words]
        if words and words[0].startswith("--") and commands:  # the line before lacks the sign that it goes on
            commands[-1] += words
        elif words:
            commands.append(words)
    return found, commands


def shell_lines(text: str, windows: bool) -> list[str]:
    """One command a line: without comments and redirections, and joined where a line goes on."""
    quoted, comment, goes_on = OF_SHELLS[windows]
    pattern = re.compile(quoted + BETWEEN.format(comment=comment), re.MULTILINE)
    plain = pattern.sub(lambda match: match["kept"] or ("\n" if match["gone"] is None else ""), text)
    return re.sub(goes_on, " ", plain).splitlines()


def expanded(word: str, variables: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return variables.get(match[1] or match[3] or match[4], match[0] if match[2] is None else match[2])

    return VARIABLE.sub(value, word)


def of_words(words: Iterable[str]) -> dict[str, Any]:
    """Options of a command line: `--name value`, `--name=value`, `--name` alone, `--name several values`."""
    found: dict[str, Any] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = typed(value) if equals else True
        elif name is not None:
            given, old = typed(word), found[name]
            found[name] = given if old is True else [*(old if isinstance(old, list) else [old]), given]
    return found


def typed(value: str) -> Any:
    """A value as JSON would have it: number, true, false, null; else text."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(value, value)
