"""Goldens: problems with their certified answers, written down so that any language can read them and anyone can make
them again, to the bit."""
