"""Judging a candidate: how an honest implementation would err (policy, emulate, yardstick), how this one does
(statistics), and what follows (verdict)."""
