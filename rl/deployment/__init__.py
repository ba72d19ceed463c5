"""A trained policy where it is used: exported files, and the server."""
