"""The process around the package: it forks, gets signals, and ends."""
