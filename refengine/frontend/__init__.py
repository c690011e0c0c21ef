"""Before the op: what predicts what (pairing), how long a key is (norm), and where gates come from (gates)."""
