"""Configurations of other trainers, read into runs of this one: `dreamlit import`.

Tables, not code, say what becomes of each option; options are named as those tools' documentation names them.
"""
