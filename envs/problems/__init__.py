"""Small environments with known answers: probes for each part of an algorithm, matrix games, faults."""
