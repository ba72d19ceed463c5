"""Small environments with known answers: probes for parts of an algorithm, and games of several agents."""
