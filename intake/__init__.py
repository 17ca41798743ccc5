"""FILES TO SCANS: tables as users export them become integer columns, once, at the edge.

`intake.read.read_scans` is the entry; `intake.master` reads the site master, registry and legs.
Every row of the input comes back as a scan or in the quarantine with its reason.
"""
