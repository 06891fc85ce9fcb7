"""Memory and time against the number of frames, beside a transformer: `aurora efficiency`."""
