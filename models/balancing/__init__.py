"""Task balancing: losses and gradients of several tasks become one update."""
