"""Lightning callbacks of dreamlit: one concern, one file. Imported as `dreamlit.callbacks`."""

if __name__ != "dreamlit.callbacks":
    raise ImportError(f"import this package as 'dreamlit.callbacks', not as {__name__!r}: install dreamlit first")


def shipped_callbacks() -> None:
    """Imports every callback of this package, so that a configuration may name it by its short class name."""
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
