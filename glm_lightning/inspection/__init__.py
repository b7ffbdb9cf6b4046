"""What a user has to know about data before training: measured, shown in the terminal, written as a page."""
