"""The paper's figures and tables, one command each, beside the paper's own numbers."""
