"""Virtual devices: a device's front over a back end that is a share of the host machine's device."""
