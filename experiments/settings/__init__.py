"""What a run is told: options, bands, settings, and the records that keep them."""
