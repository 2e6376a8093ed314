"""What several test modules share: tiny models, foreign files, references."""
