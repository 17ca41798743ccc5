"""HOW IT IS ASKED: the REST service that gives a verdict for each scan, and its console.

It wires the kernel and a bundle together and adds no scoring of its own. The wire format, with its
camelCase, stays in this room.
"""
