"""WHAT IS KNOWN: pure functions of scans. No I/O, no torch, no clock."""
