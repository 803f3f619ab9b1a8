"""What runs inside a machine: guest images, and programs of our own."""
