"""The devices and the processes that share a run."""
