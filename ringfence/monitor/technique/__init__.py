"""Ways of keeping control of a guest: what runs a virtual machine's harts, chosen per machine, invisible to it."""
