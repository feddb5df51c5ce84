"""The server side: server, connection, response writer, mux."""
