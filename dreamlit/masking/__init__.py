"""Masks for a folder of photos, by a text, a foreground model or the photos' own alpha: `dreamlit masks`.

command     the options -> making: which photos, what is there already, batch by batch -> sheet, comparing
segmenters  what finds regions: alpha, clipseg, grounded (Grounding DINO and SAM), foreground; models reads folders
finishing   from regions to one mask: shapes has the arithmetic
folders     photos and their masks' names; record: masks.jsonl, what was made of which photo, by which options
"""
