"""From a problem to its solution: what was asked (problem), how it will run (plan), the running (run) and the answer
(solution)."""
