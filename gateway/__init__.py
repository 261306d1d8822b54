"""Move a Flask application to FastAPI route by route: one process, two applications, a flag per route."""
