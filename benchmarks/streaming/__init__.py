"""What a frame of a live video costs: as the next one of a stream, and as the last one of a sliding window."""
