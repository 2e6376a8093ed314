"""The process around the package: it forks, gets signals, ends, and starts confined ones."""
