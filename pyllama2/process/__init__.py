"""What the process around the package does: it forks, it ends."""
