"""One network: its compiled step, its optimizer and the loop over epochs."""
