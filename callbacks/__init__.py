"""Lightning callbacks of dreamlit: one concern, one file. Imported as `dreamlit.callbacks`."""

if __name__ != "dreamlit.callbacks":
    raise ImportError(f"import this package as 'dreamlit.callbacks', not as {__name__!r}: install dreamlit first")
