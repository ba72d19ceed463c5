"""Settings of a run: from flags, files and keywords to a checked RunConfig, and the messages for mistakes."""
