"""HTTP below the application: limits, framing, bodies, and the server."""
