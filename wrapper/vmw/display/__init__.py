"""What is printed, and how. Nothing else in the package prints."""
