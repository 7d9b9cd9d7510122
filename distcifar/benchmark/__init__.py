"""What this project claims about speed, measured beside its peers: the programs' top layer."""
