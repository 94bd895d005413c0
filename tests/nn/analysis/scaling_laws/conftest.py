"""Tests on a public table belong to those who have it: they name its file."""

import os

collect_ignore = [] if "TESSERA_CHINCHILLA_CSV" in os.environ else ["test_published_tables.py"]
