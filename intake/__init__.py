"""HOW SCANS COME IN: files of any accepted shape become tables of scans, and nothing is lost.

A row that cannot be read goes to quarantine with its reason; an odd row that can be read is passed
on, for it may be the anomaly that is looked for. Training and serving read through this same door.
"""
