"""What runs in a sandbox to do it harm; each prints as JSON what it was answered."""
