"""What a client keeps to itself: differential privacy of clients and of patients with an accountant that counts
what was executed, sums that the server cannot take apart, and the combinations of these that would be worth nothing."""
