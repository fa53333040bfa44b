"""What runs inside a session: loaded by path or over a socket, with no other module of this package."""
