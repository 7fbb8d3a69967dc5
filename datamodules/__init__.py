"""Datasets, geometry, captions, caches and the plan of dreamlit. Imported as `dreamlit.datamodules`."""

if __name__ != "dreamlit.datamodules":
    raise ImportError(f"import this package as 'dreamlit.datamodules', not as {__name__!r}: install dreamlit first")
