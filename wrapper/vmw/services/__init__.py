"""What the commands do, without parsing of options and without printing."""
