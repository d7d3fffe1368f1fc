"""The engine process: settings in, one socket, the step loop."""
