"""`rldoctor`: examines an environment in a child process, and says what is wrong and how to train on it."""
