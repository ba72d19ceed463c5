"""The learner: the algorithm on its device, the feed of batches, several learners in parallel."""
