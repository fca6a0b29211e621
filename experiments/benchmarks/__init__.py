"""Speed of the operator against its peers, in one process and interleaved."""
