"""Matrices by structure, and the verbs that recursions need of them."""
