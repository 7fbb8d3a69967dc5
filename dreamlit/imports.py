"""The large libraries (torch, Lightning, diffusers, ...), imported in half the time."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

MANY = 50
"""New modules that make it worth while to take them out of the garbage collection."""


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Imports in this block are quicker, and large libraries stay out of Python's garbage collection.

    The collector would walk over the libraries' objects again and again while they are made, and then for as long as
    the program runs: a third of a second each time, though modules, classes and functions are never garbage.
    """
    collecting, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        with _compiled_at_first_call():
            yield
    finally:
        if len(sys.modules) > modules + MANY:
            gc.freeze()
        if collecting:
            gc.enable()


@contextlib.contextmanager
def _compiled_at_first_call() -> Iterator[None]:
    """Functions that a library compiles at its import are compiled when they are called.

    bitsandbytes has two; compiling loads all of torch's compiler, three seconds that hardly any run needs.
    """
    import torch

    compile_now: Callable[..., Any] = torch.compile

    def compile_later(model: Any = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(compile_later, **options)
        if not isinstance(model, types.FunctionType):
            return compile_now(model, **options)
        compiled = functools.cache(lambda: compile_now(model, **options))
        return functools.wraps(model)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = compile_later
    try:
        yield
    finally:
        torch.compile = compile_now
