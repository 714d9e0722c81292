"""One outside thing each: sockets, files, clocks."""
