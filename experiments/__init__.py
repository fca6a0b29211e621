"""Training programs that repeat the paper's experiments with bandjax layers."""

import os

# XLA's warnings, such as of a mesh over which it must copy more than it likes, would break into
# progress bars and tables. TF_CPP_MIN_LOG_LEVEL=0 shows them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
