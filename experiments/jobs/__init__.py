"""A job: its runs, their checkpoints and metrics, and the report at its end."""
