"""The virtual machine monitor: it takes a machine and gives machines."""
