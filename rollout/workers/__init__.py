"""Workers: an object in this process or in its own process; how they start, end and are cleaned up."""
