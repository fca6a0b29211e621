"""Training programs that repeat the paper's experiments with bandjax layers."""
