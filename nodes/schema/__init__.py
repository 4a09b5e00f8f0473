"""What nodes are declared with: our sockets, and inputs that several nodes have."""
