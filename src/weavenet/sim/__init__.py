"""The production node in virtual time, with seeded faults."""
