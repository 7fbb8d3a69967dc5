"""The page that shows a run while it goes on and afterwards: a small web server over the files of the run's folder.

It needs the standard library alone, writes nothing, and knows a run only by its files, so that it can look from another
process (`dreamlit watch`) as well as from inside the run (the callback `LivePage`).
"""
