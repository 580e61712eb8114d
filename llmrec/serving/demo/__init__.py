"""A page to look at a served model; it knows the server by its HTTP API alone (`scripts/demo.py`)."""
