"""Every system call that touches the network of the host."""
