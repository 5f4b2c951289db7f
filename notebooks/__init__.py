"""Notebooks as scripts; `python -m notebooks.execute` turns them into `.ipynb`."""
