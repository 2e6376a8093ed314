"""What the commands share: flags, errors, progress bars, chat files and the text of an inspection."""
