"""Terminal: kdkit as a command, for servers and continuous integration."""
