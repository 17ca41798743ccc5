"""The platform: which processes run, with what, and how they are brought up and down."""
