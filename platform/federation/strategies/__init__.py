"""What clients and server do beyond averaging: a small class each, with both of its halves."""
