"""Tables between published files and our parameters: one file per format, pure NumPy, no I/O."""
