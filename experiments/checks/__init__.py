"""Programs that check whole runs: killed and resumed, spread over devices, on a GPU."""
