"""Numbers and their errors: floating formats, rounding, bound arithmetic."""
