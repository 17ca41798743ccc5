"""What is measured: pure functions of scores and truth. No I/O, no clock, no model."""
