"""The command line: what all commands share is in console, the rest is a module a subject."""
