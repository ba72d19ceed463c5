"""Workers that hold an actor: in this process, or in a process of its own; start, end and clean-up."""
