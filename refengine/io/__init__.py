"""Files and other libraries' arrays: the only floor that touches either."""
