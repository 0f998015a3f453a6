"""The same nodes under a virtual clock, with faults by seed."""
