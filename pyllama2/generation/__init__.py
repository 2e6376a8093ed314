"""Generation of many texts at a time. Start at scheduler.py; engine.py puts the parts together."""
