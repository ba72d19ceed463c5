"""`rlserve`: policies over HTTP and WebSocket. Only to serve a run from its checkpoint is torch imported."""
